// Runs a grid of CUDA threads on a CPU: every thread is a fiber. The blocks of a grid run one after the other, those of
// a cluster together. A fiber runs until a barrier or a shuffle stops it, and a block until it waits for others of its
// cluster, so a missing barrier shows as a stale or NaN value. The order of threads and blocks can be reversed, to show
// what one order hides. A barrier that some thread never reaches ends the program. Switches are by setjmp and longjmp:
// swapcontext makes a system call each time.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define NN_FIBERS(call) call
#else
#define NN_FIBERS(call)
#endif

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

struct Barrier {
  int members, arrived = 0;
  int64_t generation = 0;
};

struct Block {
  std::vector<char> storage;
  char* shared;
  Barrier all;
  std::vector<Barrier> warps;
  std::vector<uint64_t> lanes;  // each thread's value in a shuffle
};

struct Fiber {
  ucontext_t context;  // where it starts; later it goes on at `place`
  jmp_buf place;
  bool started = false;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  dim3 thread, block;
  int rank;  // of the block in its cluster
  bool done = false;
  // pending asynchronous copies, by groups; the last group is not committed yet
  std::vector<std::vector<std::pair<void*, const void*>>> copies{1};
};

struct Machine {
  dim3 grid, block;
  std::vector<Block> blocks;  // of the running cluster
  Barrier cluster;
  std::vector<Fiber> fibers;
  Fiber* now = nullptr;
  jmp_buf scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_bytes = 0;
  void* scheduler_fake_stack = nullptr;
  bool progress = false;
  std::function<void()> kernel;
};

inline Machine machine;
inline bool backwards = false;  // the order in which threads take turns
constexpr size_t kStack = 256 << 10;

inline Fiber& self() { return *machine.now; }
inline Block& my_block() { return machine.blocks[size_t(self().rank)]; }

inline void yield() {
  Fiber& fiber = self();
  NN_FIBERS(__sanitizer_start_switch_fiber(&fiber.fake_stack, machine.scheduler_stack, machine.scheduler_bytes));
  if (_setjmp(fiber.place) == 0) _longjmp(machine.scheduler, 1);
  NN_FIBERS(__sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr));
}

inline void wait(Barrier& barrier) {
  machine.progress = true;
  const int64_t mine = barrier.generation;
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == mine) yield();
  machine.progress = true;
}

inline void enter() {
  NN_FIBERS(__sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_bytes));
  machine.kernel();
  self().done = machine.progress = true;
  NN_FIBERS(__sanitizer_start_switch_fiber(nullptr, machine.scheduler_stack, machine.scheduler_bytes));
  _longjmp(machine.scheduler, 1);
}

inline void resume(Fiber& fiber) {
  machine.now = &fiber;
  NN_FIBERS(__sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, fiber.stack.get(), kStack));
  if (_setjmp(machine.scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }
  NN_FIBERS(__sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr));
}

// Resumes every thread of a block once; whether any made progress. left: threads that are not done.
inline bool run_block(size_t block, size_t& left) {
  const size_t threads = machine.block.x, first = block * threads;
  machine.progress = false;
  left = 0;
  for (size_t i = 0; i < threads; ++i) {
    Fiber& fiber = machine.fibers[first + (backwards ? threads - 1 - i : i)];
    if (!fiber.done) resume(fiber);
    left += !fiber.done;
  }
  return machine.progress;
}

inline void run_fibers() {
  const size_t blocks = machine.blocks.size();
  for (size_t left = 1; left > 0;) {
    bool progress = false;
    left = 0;
    for (size_t b = 0; b < blocks; ++b) {
      size_t of_block = 0;
      while (run_block(backwards ? blocks - 1 - b : b, of_block)) progress = true;
      left += of_block;
    }
    if (left > 0 && !progress) {
      std::printf("%zu threads wait at a barrier that the others do not reach\n", left);
      std::abort();
    }
  }
}

// Shared memory starts as NaN.
inline void start_block(Block& block, unsigned threads, size_t shared_bytes) {
  block.storage.assign(shared_bytes + 16, char(0xff));
  block.shared = block.storage.data() + (16 - uintptr_t(block.storage.data()) % 16) % 16;
  block.all = {int(threads)};
  block.warps.assign(threads / 32, {32});
  block.lanes.assign(threads, 0);
}

inline void start_fiber(Fiber& fiber, dim3 thread, dim3 block, int rank) {
  fiber.thread = thread, fiber.block = block;
  fiber.rank = rank;
  fiber.done = fiber.started = false;
  if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStack);
  getcontext(&fiber.context);
  fiber.context.uc_stack = {};
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &enter, 0);
}

// kernel<<<grid, block, shared_bytes>>>() with clusters of `cluster` blocks.
inline void launch(unsigned grid, unsigned block, unsigned cluster, size_t shared_bytes, std::function<void()> kernel) {
  machine.grid = {grid}, machine.block = {block};
  machine.kernel = std::move(kernel);
  machine.fibers.resize(size_t(block) * cluster);
  machine.blocks.resize(cluster);
  for (unsigned first = 0; first < grid; first += cluster) {
    machine.cluster = {int(block * cluster)};
    for (unsigned b = 0; b < cluster; ++b) {
      start_block(machine.blocks[b], block, shared_bytes);
      for (unsigned t = 0; t < block; ++t)
        start_fiber(machine.fibers[size_t(b) * block + t], {t, 0, 0}, {first + b, 0, 0}, int(b));
    }
    run_fibers();
  }
}

}  // namespace emulation
