// Which kernel serves which shape on which device: the one table. Host code, no CUDA.
#pragma once

#include <optional>
#include <stdexcept>

#include "kernels.cuh"

namespace nanonet::cuda {

constexpr int kLanes = 32;

// Classes per lane of the small kernel; 0: the row does not fit.
inline int values_of(const Call& p) {
  const bool has_eight = p.K <= 4 && has_kl_slopes(p.divergence);
  return p.C <= 4 * kLanes ? 4 : p.C <= 8 * kLanes && has_eight ? 8 : 0;
}

inline bool all_bfloat16(const Call& p) {
  return p.student[0].dtype == Dtype::kBfloat16 && (!p.teacher.data || p.teacher.dtype == Dtype::kBfloat16);
}

// Calls body.operator()<kK, kKlSlopes, kExact>() for the kernel of a call, which serves up to kK students. kKlSlopes:
// kl and cross_entropy, with a kernel for each K up to four where `exact` asks for it. One kernel serves all other
// divergences.
template <class Body>
void with_kernel(const Call& p, bool exact, Body body) {
  if (!has_kl_slopes(p.divergence)) return body.template operator()<kMaxStudentsOfAny, false, false>();
  if (!exact) {
    if (p.K <= 2) return body.template operator()<2, true, false>();
    if (p.K <= 4) return body.template operator()<4, true, false>();
    return body.template operator()<8, true, false>();
  }
  switch (p.K) {
    case 1: return body.template operator()<1, true, true>();
    case 2: return body.template operator()<2, true, true>();
    case 3: return body.template operator()<3, true, true>();
    case 4: return body.template operator()<4, true, true>();
    default: return body.template operator()<8, true, true>();
  }
}

// Dynamic shared memory of a block that holds one of `parts` parts of a row, by default for any K.
template <int kK = kMaxStudents>
int64_t chip_bytes(const Call& p, int parts) {
  return shared_bytes<BlockShared<kK>>() + stage_bytes(p, parts);
}

template <int kK, bool kKlSlopes, bool kBfloat16>
int64_t sweep_bytes(const Call& p, int threads = threads_of(kK, kKlSlopes, kBfloat16)) {
  return shared_bytes<BlockShared<kK>>() + prefetch_bytes(p, prefetched_chunks(kK, kBfloat16), threads);
}

//   C up to 128, or 256 with kl and K <= 4                     small
//   the row fits in half an SM's shared memory                 chip, two blocks per SM: one computes, the other loads
//   it fits in that of up to 16 blocks (from sm_90 on)         the smallest cluster that leaves two blocks per SM
//   it fits in all of an SM's shared memory                    chip, one block per SM
//   longer, or a backward from saved statistics (one read)     sweep
// Not yet measured: the limits follow from registers and shared memory alone.
inline Plan plan_of(const Call& p, const Device& device, std::optional<PlanOverride> forced = {}) {
  const bool kl = has_kl_slopes(p.divergence);
  const int values = forced && !p.from_stats ? 0 : values_of(p);
  if (values) {
    int width = kMinWidth;
    while (width * values < p.C) width *= 2;
    const int64_t groups = kSmallThreads / width, blocks = (p.N + groups - 1) / groups;
    const int64_t most = device.sms * small_resident(kl ? p.K : kMaxStudentsOfAny, values);
    return {Regime::kSmall, values, width, 1, int(blocks < 1 ? 1 : blocks < most ? blocks : most)};
  }
  const int resident_blocks = resident(p.K, kl, all_bfloat16(p));
  constexpr int64_t kReserved = 1024;  // shared memory that CUDA takes per block
  const auto with = [&](Regime regime, int cluster, int64_t bytes) {
    const int64_t fitting = device.shared_of_sm / (bytes + kReserved);
    const int64_t teams = device.sms * (fitting < resident_blocks ? fitting : resident_blocks) / cluster;
    const int64_t wanted = p.N < 1 ? 1 : p.N < teams ? p.N : teams < 1 ? 1 : teams;
    return Plan{regime, 0, 0, cluster, int(wanted) * cluster};
  };
  const auto on_chip = [&](int cluster) {
    return with(cluster == 1 ? Regime::kChip : Regime::kCluster, cluster, chip_bytes(p, cluster));
  };
  const auto sweep = [&] {
    int64_t bytes = 0;
    with_kernel(p, all_bfloat16(p),
                [&]<int kK, bool kKlSlopes, bool kBfloat16>() { bytes = sweep_bytes<kK, kKlSlopes, kBfloat16>(p); });
    return with(Regime::kSweep, 1, bytes);
  };
  if (p.from_stats || (forced && forced->regime == Regime::kSweep)) return sweep();
  const int largest = device.major >= 9 ? kMaxCluster : 1;
  if (forced) {
    if (forced->cluster > largest || chip_bytes(p, forced->cluster) > device.shared_of_block)
      throw std::runtime_error("nanonet: the kernel asked for has no room for such rows on this GPU");
    return on_chip(forced->cluster);
  }
  const int64_t half = device.shared_of_sm / 2 - kReserved;
  const int64_t roomy = resident_blocks > 1 && half < device.shared_of_block ? half : device.shared_of_block;
  if (chip_bytes(p, 1) <= roomy) return on_chip(1);
  for (const int64_t limit : {roomy, device.shared_of_block})
    for (int cluster = 2; cluster <= largest; cluster *= 2)
      if (chip_bytes(p, cluster) <= limit) return on_chip(cluster);
  return chip_bytes(p, 1) <= device.shared_of_block ? on_chip(1) : sweep();
}

}  // namespace nanonet::cuda
