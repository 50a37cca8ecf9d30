// Which kernel serves which shape on which device: the one table. Host code, no CUDA.
#pragma once

#include <stdexcept>

#include "kernels.cuh"

namespace nanonet::cuda {

constexpr int kLanes = 32;

// Classes a lane that a cohort of K students has registers for; 0: none.
inline int values_of(int K, int64_t C) { return C <= 4 * kLanes ? 4 : C <= 8 * kLanes && K <= 4 ? 8 : 0; }

inline bool all_bfloat16(const Call& p) {
  return p.student[0].dtype == Dtype::kBfloat16 && (!p.teacher.data || p.teacher.dtype == Dtype::kBfloat16);
}

// Calls body.operator()<kK, kKl, kExact>(): kl with exactly as many students up to four, and eight at most, where `exact`
// asks for that; else with two, four or eight at most; any divergence with four at most.
template <class Body>
void with_kernel(const Call& p, bool exact, Body body) {
  if (p.divergence != kKl) return body.template operator()<kMaxStudentsOfAny, false, false>();
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

inline int64_t chip_bytes(const Call& p, int parts) {
  return int64_t(shared_bytes<BlockShared<kMaxStudents>>()) + stage_bytes(p, parts);
}

template <int kK, bool kKl, bool kBfloat16>
int64_t sweep_bytes(const Call& p, int threads = threads_of(kK, kKl, kBfloat16)) {
  return shared_bytes<BlockShared<kK>>() + ahead_bytes(p, ahead_of(kK, kBfloat16), threads);
}

//   C up to 256, or 128 where K > 4            small
//   the row in half a processor's memory      on chip: one block computes while the other loads
//   in that of up to 16 blocks, from sm_90 on the smallest cluster that leaves room for two blocks a processor
//   in a whole processor's memory             on chip, one block a processor
//   longer, and every backward from saved statistics, which reads once anyway     sweep
// Not yet measured: the limits follow from registers and shared memory alone.
inline Plan plan_of(const Call& p, const Device& device, const Wish* wish = nullptr) {
  const int values = wish && !p.from_stats ? 0 : values_of(p.K, p.C);
  if (values) {
    int width = kMinWidth;
    while (width * values < p.C) width *= 2;
    const int64_t groups = kSmallThreads / width, blocks = (p.N + groups - 1) / groups;
    const int64_t most = device.processors * small_resident(p.divergence == kKl ? p.K : kMaxStudentsOfAny, values);
    return {Regime::kSmall, values, width, 1, int(blocks < 1 ? 1 : blocks < most ? blocks : most)};
  }
  const int resident_blocks = resident(p.K, p.divergence == kKl, all_bfloat16(p));
  constexpr int64_t kReserved = 1024;  // of shared memory, for each block
  const auto with = [&](Regime regime, int cluster, int64_t bytes) {
    const int64_t fitting = device.shared_of_processor / (bytes + kReserved);
    const int64_t teams = device.processors * (fitting < resident_blocks ? fitting : resident_blocks) / cluster;
    const int64_t wanted = p.N < 1 ? 1 : p.N < teams ? p.N : teams < 1 ? 1 : teams;
    return Plan{regime, 0, 0, cluster, int(wanted) * cluster};
  };
  const auto on_chip = [&](int cluster) {
    return with(cluster == 1 ? Regime::kChip : Regime::kCluster, cluster, chip_bytes(p, cluster));
  };
  const auto sweep = [&] {
    int64_t bytes = 0;
    with_kernel(p, all_bfloat16(p),
                [&]<int kK, bool kKl, bool kBfloat16>() { bytes = sweep_bytes<kK, kKl, kBfloat16>(p); });
    return with(Regime::kSweep, 1, bytes);
  };
  if (p.from_stats || (wish && wish->regime == Regime::kSweep)) return sweep();
  const int largest = device.major >= 9 ? kMaxCluster : 1;
  if (wish) {
    if (wish->cluster > largest || chip_bytes(p, wish->cluster) > device.shared_of_block)
      throw std::runtime_error("nanonet: the kernel that was asked for has no room for such rows on this GPU");
    return on_chip(wish->cluster);
  }
  const int64_t half = device.shared_of_processor / 2 - kReserved;
  const int64_t roomy = resident_blocks > 1 && half < device.shared_of_block ? half : device.shared_of_block;
  if (chip_bytes(p, 1) <= roomy) return on_chip(1);
  for (const int64_t limit : {roomy, device.shared_of_block})
    for (int cluster = 2; cluster <= largest; cluster *= 2)
      if (chip_bytes(p, cluster) <= limit) return on_chip(cluster);
  return chip_bytes(p, 1) <= device.shared_of_block ? on_chip(1) : sweep();
}

}  // namespace nanonet::cuda
