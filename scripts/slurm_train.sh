#!/bin/bash
# One training run as a Slurm job that goes on for as many attempts as it needs. Copy it, change what is marked, then
# submit it from the project's root:
#
#     mkdir -p runs/logs && sbatch scripts/slurm_train.sh
#
# The same line starts the run and goes on with it. When the time of an attempt ends, the program saves the step it is in
# and ends with exit code 75, and the job goes back to the queue. It saves as well when the job is preempted, which Slurm
# then starts again, or cancelled, which ends it. Submitting the file again after any end does no harm: a run that is
# complete is only reported.

#SBATCH --job-name=train
#SBATCH --cpus-per-task=4               # CHANGE
#SBATCH --mem=4G                        # CHANGE
#SBATCH --time=01:00:00                 # CHANGE: of one attempt
##SBATCH --gres=gpu:1                   # CHANGE: with one # a GPU; then --device cuda below
#SBATCH --output=runs/logs/%x-%j.txt
#SBATCH --open-mode=append              # later attempts write below the earlier ones
#SBATCH --requeue                       # a preempted job, or one whose node failed, is started again
#SBATCH --signal=B:USR1@120             # two minutes before the end of --time, this shell gets SIGUSR1

# CHANGE: the environment, where `gpbackprop` is not already one of it:
# source .venv/bin/activate

# CHANGE: the run. Its directory must be one that all nodes see. The nodes should be of one kind (sbatch --constraint):
# on another processor the same program gives other last bits, which is refused unless --allow-inexact is added.
train=(gpbackprop train configs/digits.toml --run-dir "runs/digits-$SLURM_JOB_ID" --resume --grace 100)

# NumPy's threads: what was asked for, not all the cores of the node.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} OPENBLAS_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# The program runs in the background, so that the shell hears signals while it waits, and passes them on. Where Slurm has
# told the program too, it takes both for one.
"${train[@]}" &
program=$!
out_of_time=
trap 'out_of_time=1; kill -TERM "$program" 2>/dev/null' USR1
trap 'kill -TERM "$program" 2>/dev/null' TERM   # preempted or cancelled: Slurm itself decides whether it starts again

while
    wait "$program"                     # ends early, with a status above 128, when a signal comes
    status=$?
    kill -0 "$program" 2>/dev/null
do :; done
if ((status > 128)); then
    wait "$program"                     # it may have ended in the meantime: its own status
    status=$?
fi

if [[ $out_of_time ]] && ((status == 75)); then
    echo "attempt $((SLURM_RESTART_COUNT + 1)) of job $SLURM_JOB_ID is saved and goes back to the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
