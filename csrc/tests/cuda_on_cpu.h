// The parts of CUDA that the kernels of csrc/cuda use, for running them on a CPU (fibers.h).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "fibers.h"

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace emulation {
// Counted over all launches.
inline int64_t exponentials = 0;
inline int64_t vectors_copied = 0;  // of 16 bytes, asynchronously
}  // namespace emulation

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __grid_constant__

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
inline int64_t opaque(int64_t n) { return n; }
inline float exp2_fast(float x) {
  ++emulation::exponentials;
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0 : y;
}
inline float log2_fast(float x) {  // as far off as the hardware's may be
  const float y = log2f(x);
  return y + 0x1p-22f * fmaxf(1, fabsf(y));
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

inline void check_aligned(const void* at) {
  if (uintptr_t(at) % 16 == 0) return;
  std::printf("16 bytes at %p are not aligned\n", at);
  std::abort();
}
inline void store_streaming(uint4* at, uint4 value) { check_aligned(at), *at = value; }

// The bytes arrive at the wait: a read without a wait finds NaN, not what was there before.
inline void copy_async(void* shared, const void* global) {
  check_aligned(shared), check_aligned(global);
  std::memset(shared, 0xff, 16);
  ++emulation::vectors_copied;
  emulation::self().copies.back().emplace_back(shared, global);
}
inline void copies_commit() { emulation::self().copies.emplace_back(); }
template <int kPending>
void copies_wait_but() {
  auto& groups = emulation::self().copies;
  while (groups.size() > kPending + 1) {
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

// In one order of the threads a message arrives at once, as early as possible: a late read finds the next phase's
// value. In the other it arrives as late as possible: a read without a wait finds the old value.
struct Mbarrier {
  int32_t bytes;
  uint16_t pending, phase;

  void try_complete() {
    if (pending > 0 || bytes != 0) return;
    pending = 1, ++phase;
    emulation::machine.progress = true;
  }
};
static_assert(sizeof(Mbarrier) == 8);
template <class T>
T* in_block(T* mine, uint32_t rank) {
  const auto offset = reinterpret_cast<const char*>(mine) - shared_memory();
  return reinterpret_cast<T*>(emulation::machine.blocks[rank].shared + offset);
}
inline void mbarrier_init(Mbarrier* mbarrier) { *mbarrier = {0, 1, 0}; }
inline void mbarrier_expect(Mbarrier* mbarrier, uint32_t bytes) {
  mbarrier->bytes += int32_t(bytes), --mbarrier->pending;
  mbarrier->try_complete();
}
struct Message {
  float* to;
  float value;
  Mbarrier* mbarrier;
};
inline std::vector<Message> in_flight;
inline void deliver(const Message& message) {
  *message.to = message.value;
  message.mbarrier->bytes -= int32_t(sizeof message.value);
  message.mbarrier->try_complete();
}
inline void send_async(float* mine, float value, Mbarrier* mbarrier, uint32_t rank) {
  const Message message{in_block(mine, rank), value, in_block(mbarrier, rank)};
  if (emulation::backwards) in_flight.push_back(message);
  else deliver(message);
}
inline void mbarrier_wait(Mbarrier* mbarrier, uint32_t parity) {
  while ((mbarrier->phase & 1u) == parity) {
    const auto mine = [&](const Message& message) { return message.mbarrier == mbarrier; };
    const auto next = std::find_if(in_flight.begin(), in_flight.end(), mine);
    if (next == in_flight.end()) {
      emulation::yield();
      continue;
    }
    const Message message = *next;
    in_flight.erase(next);
    deliver(message);
  }
  emulation::machine.progress = true;
}

}  // namespace nanonet::cuda
