// Enough of CUDA to run the kernels of csrc/cuda on a CPU: every CUDA thread is a fiber, blocks of a grid run one after
// the other, the blocks of a cluster together. A fiber runs until a barrier or a shuffle stops it, and a block until it
// waits for the others of its cluster, so a missing barrier shows as a stale or poisoned value; the order of threads and
// blocks can be turned round to show those that one order hides.
// Shared memory starts as NaN. A barrier that some thread never reaches ends the program.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
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
  std::vector<uint64_t> lanes;  // what each thread offers in a shuffle
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  dim3 thread, block;
  int rank;  // of the block in its cluster
  bool done = false;
  // asked for, not waited for, by groups; the last is not committed yet
  std::vector<std::vector<std::pair<void*, const void*>>> copies{1};
};

struct Machine {
  dim3 grid, block;
  std::vector<Block> blocks;  // of the cluster that runs
  Barrier cluster;
  std::vector<Fiber> fibers;
  Fiber* now = nullptr;
  ucontext_t scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_bytes = 0;
  void* scheduler_fake_stack = nullptr;
  bool progress = false;
  std::function<void()> kernel;
};

inline Machine machine;
inline bool backwards = false;    // the order in which threads take turns
inline int64_t exponentials = 0;  // taken so far
inline int64_t pieces = 0;        // of 16 bytes, asked for so far
constexpr size_t kStack = 256 << 10;

inline Fiber& self() { return *machine.now; }
inline Block& my_block() { return machine.blocks[size_t(self().rank)]; }

inline void yield() {
  Fiber& fiber = self();
  NN_FIBERS(__sanitizer_start_switch_fiber(&fiber.fake_stack, machine.scheduler_stack, machine.scheduler_bytes));
  swapcontext(&fiber.context, &machine.scheduler);
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
  swapcontext(&self().context, &machine.scheduler);
}

inline void resume(Fiber& fiber) {
  machine.now = &fiber;
  NN_FIBERS(__sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, fiber.stack.get(), kStack));
  swapcontext(&machine.scheduler, &fiber.context);
  NN_FIBERS(__sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr));
}

// A turn of every thread of a block; whether any came further. left: those that are not done.
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

// kernel<<<grid, block, shared_bytes>>>() with clusters of `cluster` blocks.
inline void launch(unsigned grid, unsigned block, unsigned cluster, size_t shared_bytes, std::function<void()> kernel) {
  machine.grid = {grid}, machine.block = {block};
  machine.kernel = std::move(kernel);
  machine.fibers.resize(size_t(block) * cluster);
  machine.blocks.resize(cluster);
  for (unsigned first = 0; first < grid; first += cluster) {
    machine.cluster = {int(block * cluster)};
    for (unsigned b = 0; b < cluster; ++b) {
      Block& one = machine.blocks[b];
      one.storage.assign(shared_bytes + 16, char(0xff));
      one.shared = one.storage.data() + (16 - uintptr_t(one.storage.data()) % 16) % 16;
      one.all = {int(block)};
      one.warps.assign(block / 32, {32});
      one.lanes.assign(block, 0);
      for (unsigned t = 0; t < block; ++t) {
        Fiber& fiber = machine.fibers[size_t(b) * block + t];
        fiber.thread = {t, 0, 0}, fiber.block = {first + b, 0, 0};
        fiber.rank = int(b);
        fiber.done = false;
        if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStack);
        getcontext(&fiber.context);
        fiber.context.uc_stack = {};
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, &enter, 0);
      }
    }
    run_fibers();
  }
}

}  // namespace emulation

#define threadIdx emulation::self().thread
#define blockIdx emulation::self().block
#define blockDim emulation::machine.block
#define gridDim emulation::machine.grid

inline void __syncthreads() { emulation::wait(emulation::my_block().all); }
inline void __threadfence() {}

template <class T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  auto& block = emulation::my_block();
  const size_t thread = threadIdx.x;
  std::memcpy(&block.lanes[thread], &value, sizeof value);
  emulation::wait(block.warps[thread / 32]);
  T other;
  std::memcpy(&other, &block.lanes[thread ^ size_t(offset)], sizeof other);
  emulation::wait(block.warps[thread / 32]);
  return other;
}

inline bool __all_sync(unsigned lanes, bool mine) {
  for (int offset = 16; offset > 0; offset /= 2) mine &= __shfl_xor_sync(lanes, mine, offset);
  return mine;
}

inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at += value;
  return before;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
using std::min;

namespace nanonet::cuda {

inline float infinity() { return INFINITY; }
inline float not_a_number() { return NAN; }
inline uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
inline int64_t forgotten(int64_t n) { return n; }
inline float exp2_fast(float x) {
  ++emulation::exponentials;
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0 : y;
}
inline float float_of_half(uint16_t bits) { return float(std::bit_cast<_Float16>(bits)); }
inline uint32_t two_halves(float low, float high) {
  return std::bit_cast<uint16_t>(_Float16(low)) | uint32_t(std::bit_cast<uint16_t>(_Float16(high))) << 16;
}
inline uint32_t bfloat16_of(float x) {
  const uint32_t bits = bits_of(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t two_bfloat16(float low, float high) { return bfloat16_of(low) | bfloat16_of(high) << 16; }

inline void on_grid(const void* at) {
  if (uintptr_t(at) % 16 == 0) return;
  std::printf("16 bytes at %p are not aligned\n", at);
  std::abort();
}
inline void store_once(uint4* at, uint4 value) { on_grid(at), *at = value; }

// Copied at the wait alone: who reads without waiting reads NaN, not what was there before.
inline void copy_async(void* shared, const void* global) {
  on_grid(shared), on_grid(global);
  std::memset(shared, 0xff, 16);
  ++emulation::pieces;
  emulation::self().copies.back().emplace_back(shared, global);
}
inline void copies_commit() { emulation::self().copies.emplace_back(); }
template <int kFew>
void copies_wait_but() {
  auto& groups = emulation::self().copies;
  while (groups.size() > kFew + 1) {
    for (const auto& [to, from] : groups.front()) std::memcpy(to, from, 16);
    groups.erase(groups.begin());
  }
}
inline void copies_wait() {
  copies_commit();
  copies_wait_but<0>();
}
inline char* shared_memory() { return emulation::my_block().shared; }

inline uint32_t cluster_rank() { return uint32_t(emulation::self().rank); }
inline uint32_t cluster_size() { return uint32_t(emulation::machine.blocks.size()); }
inline void cluster_sync() { emulation::wait(emulation::machine.cluster); }

// A message arrives at once, which is the earliest that one can: who reads late finds the next phase's. Or, turn and turn
// about with the order of the threads, as late as it can: who does not wait for it finds what was there before.
struct Mailbox {
  int32_t bytes;
  uint16_t pending, phase;

  void turn() {
    if (pending > 0 || bytes != 0) return;
    pending = 1, ++phase;
    emulation::machine.progress = true;
  }
};
static_assert(sizeof(Mailbox) == 8);
template <class T>
T* in_block(T* mine, uint32_t rank) {
  const auto offset = reinterpret_cast<const char*>(mine) - shared_memory();
  return reinterpret_cast<T*>(emulation::machine.blocks[rank].shared + offset);
}
inline void open_mailbox(Mailbox* mailbox) { *mailbox = {0, 1, 0}; }
inline void expect(Mailbox* mailbox, uint32_t bytes) {
  mailbox->bytes += int32_t(bytes), --mailbox->pending;
  mailbox->turn();
}
struct Message {
  float* to;
  float value;
  Mailbox* mailbox;
};
inline std::vector<Message> under_way;
inline void deliver(const Message& message) {
  *message.to = message.value;
  message.mailbox->bytes -= int32_t(sizeof message.value);
  message.mailbox->turn();
}
inline void send(float* mine, float value, Mailbox* mailbox, uint32_t rank) {
  const Message message{in_block(mine, rank), value, in_block(mailbox, rank)};
  if (emulation::backwards) under_way.push_back(message);
  else deliver(message);
}
inline void receive(Mailbox* mailbox, uint32_t parity) {
  while ((mailbox->phase & 1u) == parity) {
    const auto mine = [&](const Message& message) { return message.mailbox == mailbox; };
    const auto next = std::find_if(under_way.begin(), under_way.end(), mine);
    if (next == under_way.end()) {
      emulation::yield();
      continue;
    }
    const Message message = *next;
    under_way.erase(next);
    deliver(message);
  }
  emulation::machine.progress = true;
}

}  // namespace nanonet::cuda
