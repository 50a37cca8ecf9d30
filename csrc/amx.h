// Products of bfloat16 by the tile unit (AMX) of newer x86 CPUs: accumulated in float32 and left in it, which torch's
// own product on a CPU rounds to bfloat16. No torch.
#pragma once

#include <cstdint>

namespace nanonet {

// out (R,V) = x (R,D) weight (V,D)^T. Rows are so many elements apart; their last dimension is dense.
struct Bf16Product {
  int64_t R, V, D;
  const uint16_t *x, *weight;
  float* out;
  int64_t x_stride, weight_stride, out_stride;
};

// Whether this CPU has the unit, the system lets this process use it, and NANONET_CPU_ISA asks for no narrower set.
bool amx_ready();

// x in whole tiles of zero-padded rows, as `amx_product` reads it; `to` has amx_packed_bytes(p).
int64_t amx_packed_bytes(const Bf16Product& p);
void amx_pack(const Bf16Product& p, void* to);

// Bytes that a thread needs for its part of the columns.
int64_t amx_scratch_bytes(const Bf16Product& p);

// Columns [begin, end) of out, by one thread; begin is a multiple of kAmxColumns.
constexpr int64_t kAmxColumns = 32;
void amx_product(const Bf16Product& p, const void* packed, int64_t begin, int64_t end, void* scratch);

}  // namespace nanonet
