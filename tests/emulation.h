// What a kernel of this package needs of CUDA, on the host: the threads of a block take turns, each running until it
// waits at a barrier. It finds wrong numbers, not races.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

static inline double __longlong_as_double(long long bits) {
  double number;
  memcpy(&number, &bits, sizeof number);
  return number;
}

struct Index { unsigned x; };
static Index threadIdx, blockIdx;

const int MOST_THREADS = 1024, STACK = 1 << 15;
static ucontext_t scheduler, *fibers;
static bool running[MOST_THREADS];
static void (*body)(void*);
static void* arguments;

static void __syncthreads() { swapcontext(&fibers[threadIdx.x], &scheduler); }
static void __syncwarp() { __syncthreads(); }

static void fiber() {
  body(arguments);
  running[threadIdx.x] = false;
}

static void emulate(unsigned grid, unsigned block, bool barriers, void (*kernel)(void*), void* values) {
  static char* stacks;
  body = kernel, arguments = values;
  if (!fibers) {
    fibers = (ucontext_t*)malloc(MOST_THREADS * sizeof(ucontext_t));
    stacks = (char*)malloc(MOST_THREADS * STACK);
  }
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
    if (!barriers) {
      for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) kernel(values);
      continue;
    }
    for (unsigned t = 0; t < block; ++t) {
      running[t] = true;
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks + t * STACK, fibers[t].uc_stack.ss_size = STACK;
      fibers[t].uc_link = &scheduler;
      makecontext(&fibers[t], fiber, 0);
    }
    for (bool any = true; any;) {
      any = false;
      for (unsigned t = 0; t < block; ++t) {
        if (!running[t]) continue;
        threadIdx.x = t;
        swapcontext(&scheduler, &fibers[t]);
        any = true;
      }
    }
  }
}
