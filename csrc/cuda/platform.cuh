// The few things that the kernels ask of a GPU. nvcc takes them from CUDA; g++ takes them from the emulation that the
// tests bring (csrc/tests/cuda_on_cpu.h), so that what is tested without a GPU is this very code.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define NN_DEVICE __device__ __forceinline__
#define NN_UNROLL _Pragma("unroll")
#define NN_NO_UNROLL _Pragma("unroll 1")
// Compiled for every architecture, with a body only where the hardware has clusters.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define NN_CLUSTERS 1
#endif
#else
#include "cuda_on_cpu.h"
#define NN_DEVICE inline
#define NN_UNROLL
#define NN_NO_UNROLL
#define NN_CLUSTERS 1
#endif

namespace nanonet::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2e = 1.4426950408889634f, kLowest = -3.402823466e38f;

#if defined(__CUDACC__)

NN_DEVICE float infinity() { return __int_as_float(0x7f800000); }
NN_DEVICE float not_a_number() { return __int_as_float(0x7fffffff); }
NN_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
NN_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

// The same number, but nothing that was computed from it outlives this point in registers: it is computed again.
NN_DEVICE int64_t forgotten(int64_t n) {
  asm volatile("" : "+l"(n));
  return n;
}

NN_DEVICE float exp2_fast(float x) {  // 2 ulp; what would be denormal is 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

NN_DEVICE float float_of_half(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
NN_DEVICE uint32_t two_halves(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
NN_DEVICE uint32_t two_bfloat16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

NN_DEVICE void store_once(uint4* at, uint4 value) { __stcs(at, value); }  // nobody on this chip reads it soon

// 16 bytes from global to shared memory past the registers; done after copies_wait().
NN_DEVICE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
NN_DEVICE void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Those asked for since the last commit are a group; all groups but the last few are done after the wait.
NN_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kFew>
NN_DEVICE void copies_wait_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kFew) : "memory");
}

// All shared memory is dynamic: its size is a launch parameter.
NN_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// For code that runs where there are clusters.
NN_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
NN_DEVICE uint32_t cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// All threads of all blocks of the cluster; what was written before, to shared memory too, is seen after.
// Not the .aligned form: the threads of a warp may come here one after the other.
NN_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Messages from block to block of a cluster. Each block says once a phase how many bytes it expects; the phase is over
// when they have come, and the next begins. Unlike a barrier of the cluster it waits for no store to global memory.
using Mailbox = uint64_t;
NN_DEVICE uint32_t shared_address(const void* at) { return uint32_t(__cvta_generic_to_shared(at)); }
NN_DEVICE uint32_t address_in_block(const void* mine, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(mine)), "r"(rank));
  return address;
}
// By one thread, and a cluster_sync() before the first message.
NN_DEVICE void open_mailbox(Mailbox* mailbox) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(
                   shared_address(mailbox))
               : "memory");
}
NN_DEVICE void expect(Mailbox* mailbox, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(mailbox)), "r"(bytes)
               : "memory");
}
// The value comes to lie at the place of `mine` in the other block, and counts in its mailbox.
NN_DEVICE void send(float* mine, float value, Mailbox* mailbox, uint32_t rank) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   address_in_block(mine, rank)),
               "f"(value), "r"(address_in_block(mailbox, rank))
               : "memory");
}
// Until the phase is over; parity: whether an odd number of phases came before it.
NN_DEVICE void receive(Mailbox* mailbox, uint32_t parity) {
  uint32_t over;
  do {
    asm volatile(
        "{\n.reg .pred over;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n}"
        : "=r"(over)
        : "r"(shared_address(mailbox)), "r"(parity)
        : "memory");
  } while (over == 0);
}

#endif  // __CUDACC__

}  // namespace nanonet::cuda
