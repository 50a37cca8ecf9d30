// The hardware functions that the kernels use. nvcc takes them from CUDA; g++ takes them from the tests' emulator
// (csrc/tests/cuda_on_cpu.h), so that the kernels are tested without a GPU.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define NN_DEVICE __device__ __forceinline__
#define NN_UNROLL _Pragma("unroll")
#define NN_NO_UNROLL _Pragma("unroll 1")
// Cluster kernels are compiled for every architecture; below sm_90 their body is empty.
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

// The same number, opaque to the compiler: what is computed from it is computed here, not held in registers across a
// loop.
NN_DEVICE int64_t opaque(int64_t n) {
  asm volatile("" : "+l"(n));
  return n;
}

NN_DEVICE float exp2_fast(float x) {  // 2 ulp; a denormal result becomes 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

NN_DEVICE float log2_fast(float x) {  // of a normal x: 2^-22, absolute near 1 and relative elsewhere
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
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

NN_DEVICE void store_streaming(uint4* at, uint4 value) { __stcs(at, value); }  // evicted first from the cache

// Copies 16 bytes from global to shared memory (cp.async); complete after copies_wait().
NN_DEVICE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
NN_DEVICE void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// The copies since the last commit form a group. After copies_wait_but<n>() all groups but the last n are complete.
NN_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
NN_DEVICE void copies_wait_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// All shared memory is dynamic: its size is a launch parameter.
NN_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

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
// A barrier of all threads of the cluster; earlier writes to global and shared memory are visible after it.
// Not the .aligned form: the threads of a warp may have diverged.
NN_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Messages between the blocks of a cluster, through an mbarrier in the receiver's shared memory. In each phase the
// receiver declares how many bytes it expects; the phase completes when they have arrived. Unlike a cluster barrier,
// this waits for no store to global memory.
using Mbarrier = uint64_t;
NN_DEVICE uint32_t shared_address(const void* at) { return uint32_t(__cvta_generic_to_shared(at)); }
NN_DEVICE uint32_t address_in_block(const void* mine, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(mine)), "r"(rank));
  return address;
}
// Called by one thread, before a cluster_sync() and the first message.
NN_DEVICE void mbarrier_init(Mbarrier* mbarrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(
                   shared_address(mbarrier))
               : "memory");
}
NN_DEVICE void mbarrier_expect(Mbarrier* mbarrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(mbarrier)), "r"(bytes)
               : "memory");
}
// Writes the value to the address of `mine` in the shared memory of block `rank`, and counts its bytes in that block's
// mbarrier.
NN_DEVICE void send_async(float* mine, float value, Mbarrier* mbarrier, uint32_t rank) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   address_in_block(mine, rank)),
               "f"(value), "r"(address_in_block(mbarrier, rank))
               : "memory");
}
// Waits for the phase to complete. parity: the number of phases before it, modulo 2.
NN_DEVICE void mbarrier_wait(Mbarrier* mbarrier, uint32_t parity) {
  uint32_t complete;
  do {
    asm volatile(
        "{\n.reg .pred complete;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n}"
        : "=r"(complete)
        : "r"(shared_address(mbarrier)), "r"(parity)
        : "memory");
  } while (complete == 0);
}

#endif  // __CUDACC__

}  // namespace nanonet::cuda
