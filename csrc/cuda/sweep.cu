// Rows in global memory.
#include "launch.cuh"

namespace nanonet::cuda {

void launch_sweep(const Launch& l) {
  with_kernel(l.call, all_bfloat16(l.call), [&]<int kK, bool kKl, bool kBfloat16>() {
    distill_sweep_kernel<kK, kKl, kBfloat16>
        <<<l.plan.blocks, threads_of(kK, kKl, kBfloat16), shared_bytes<BlockShared<kK>>(), l.stream>>>(l.call);
  });
  check(cudaGetLastError());
}

}  // namespace nanonet::cuda
