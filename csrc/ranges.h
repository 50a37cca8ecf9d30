// The loss of a range of rows in float or double, for kernels.cpp: each is compiled alone (ranges.cpp).
#pragma once

#include "vec.h"

namespace nanonet::NANONET_ISA {

enum class Pass { kTerms, kLoss, kBackward };

template <class F>
void run_range(const Problem& p, Pass pass, int64_t begin, int64_t end, char* scratch);

template <class F>
int64_t range_bytes(const Problem& p);  // of the scratch

}  // namespace nanonet::NANONET_ISA
