// Rows in the shared memory of a cluster of blocks.
#include "launch.cuh"

namespace nanonet::cuda {

// Clusters of more than 8 blocks have to be allowed once for each kernel and device.
template <auto kKernel>
static void allow_large_clusters(const Launch& l) {
  static bool done[kMaxDevices];
  if (!done[l.device_index]) check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  done[l.device_index] = true;
}

template <auto kKernel>
static void launch_clusters(const Launch& l, int threads, int64_t shared_bytes) {
  allow_large_clusters<kKernel>(l);
  allow_shared_memory<kKernel>(l);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(l.plan.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(l.plan.blocks));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = l.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;

  // A cluster runs within one GPC, and GPCs differ in their number of SMs. A grid of more clusters than fit at once
  // would need a second wave of a few clusters, during which most SMs idle.
  int fitting = 0;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&fitting, kKernel, &config);
  if (status == cudaErrorInvalidClusterSize) cudaGetLastError();
  else check(status);
  if (status != cudaSuccess || fitting < 1) return launch_sweep(l);  // a MIG slice may have no GPC with so many SMs
  if (fitting * l.plan.cluster < l.plan.blocks) config.gridDim.x = unsigned(fitting * l.plan.cluster);
  check(cudaLaunchKernelEx(&config, kKernel, l.call));
}

void launch_cluster(const Launch& l) {
  with_kernel(l.call, all_bfloat16(l.call), [&]<int kK, bool kKlSlopes, bool kBfloat16>() {
    launch_clusters<distill_chip_kernel<kK, kKlSlopes, kBfloat16, true>>(l, threads_of(kK, kKlSlopes, kBfloat16),
                                                                   chip_bytes<kK>(l.call, l.plan.cluster));
  });
}

}  // namespace nanonet::cuda
