#!/bin/bash
# An experiment as a Slurm job array: each element trains its share of the variations of experiment.py. Copy it, change
# what is marked, then submit it from the project's root:
#
#     mkdir -p runs/logs && sbatch scripts/slurm_array.sh
#
# and when all elements are done, compare them (on any machine that sees the same files):
#
#     bash scripts/slurm_array.sh --summarize
#
# An element that was preempted, ran out of time or was on a node that failed goes on at its last checkpoint, and the
# finished runs are skipped: when in doubt, submit the same file again.

#SBATCH --job-name=experiment
#SBATCH --array=0-3                     # CHANGE: elements 0 to N - 1, at most one for each variation
#SBATCH --cpus-per-task=4               # CHANGE
#SBATCH --mem=4G                        # CHANGE
#SBATCH --time=01:00:00                 # CHANGE: of one attempt
##SBATCH --gres=gpu:1                   # CHANGE: with one # a GPU for each element; then --device cuda below
#SBATCH --output=runs/logs/%x-%A-%a.txt
#SBATCH --open-mode=append              # later attempts write below the earlier ones
#SBATCH --requeue                       # a preempted element, or one whose node failed, is started again
#SBATCH --signal=B:USR1@120             # two minutes before the end of --time, this shell gets SIGUSR1

# CHANGE: the environment, where `python` is not already one with gpbackprop:
# source .venv/bin/activate

# CHANGE: the experiment. The folder must be one that all nodes see.
experiment=(
    python scripts/experiment.py configs/digits.toml
    --vary optimizer.lr=0.02,0.05 --vary model.0.units=32,128
    --seeds 5 --out runs/digits-experiment
)

if [[ $1 == --summarize ]]; then
    exec "${experiment[@]}" --summarize
fi

# NumPy's threads: what was asked for, not all the cores of the node.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} OPENBLAS_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# The program runs in the background, so that the shell hears signals while it waits, and passes them on: at SIGTERM the
# program saves and ends with exit code 75.
"${experiment[@]}" --task "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))" --of "$SLURM_ARRAY_TASK_COUNT" &
program=$!
out_of_time=
trap 'out_of_time=1; kill -TERM "$program"' USR1
trap 'kill -TERM "$program"' TERM       # preempted or cancelled: Slurm itself decides whether it starts again

while
    wait "$program"                     # ends early, with a status above 128, when a signal comes
    status=$?
    kill -0 "$program" 2>/dev/null
do :; done
if ((status > 128)); then
    wait "$program"                     # it may have ended in the meantime: its own status
    status=$?
fi

if [[ $out_of_time ]] && ((status == 75 || status > 128)); then
    echo "element $SLURM_ARRAY_TASK_ID is out of time and goes back to the queue"
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
