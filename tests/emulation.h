// What a kernel of this package needs of CUDA, on the host: the threads of a block take turns, each running until it
// waits at a barrier. It finds wrong numbers, not races.
#pragma once
#include <cmath>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

static inline double __longlong_as_double(long long bits) {
  double number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

struct Index { unsigned x; };
static Index threadIdx, blockIdx;
static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<bool> running;
static void (*body)(void*);
static void* arguments;

static void __syncthreads() { swapcontext(&fibers[threadIdx.x], &scheduler); }
static void __syncwarp() { __syncthreads(); }

static void fiber() {
  body(arguments);
  running[threadIdx.x] = false;
}

static void emulate(unsigned grid, unsigned block, bool barriers, void (*kernel)(void*), void* values) {
  static std::vector<char> stacks;
  const size_t size = 1 << 15;
  body = kernel, arguments = values;
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
    if (!barriers) {
      for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) kernel(values);
      continue;
    }
    stacks.resize(block * size), fibers.resize(block), running.assign(block, true);
    for (unsigned t = 0; t < block; ++t) {
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = &stacks[t * size], fibers[t].uc_stack.ss_size = size, fibers[t].uc_link = &scheduler;
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
