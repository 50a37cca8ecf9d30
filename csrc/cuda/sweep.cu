// Rows in global memory.
#include "launch.cuh"

namespace nanonet::cuda {

void launch_sweep(const Launch& l) {
  with_kernel(l.call, [&]<int kK, bool kKl>() {
    distill_sweep_kernel<kK, kKl>
        <<<l.plan.blocks, threads_of(kK, kKl), shared_bytes<BlockShared<kK>>(), l.stream>>>(l.call);
  });
  check(cudaGetLastError());
}

}  // namespace nanonet::cuda
