// Compiled for AMX where the compiler knows it (CMakeLists.txt defines NANONET_AMX); runs only after `amx_ready`, which is
// isa.cpp's: nothing here may run on other CPUs.
//
// A block of 32 x 32 outputs stays in four tiles while D is gone through 32 at a time. A tile of the second operand holds
// pairs of its rows side by side, so 32 rows of weight are transposed, in words of two elements, before they are used.
#include "amx.h"

#include <cstring>

#if defined(NANONET_AMX)
#include <immintrin.h>
#endif

namespace nanonet {

#if defined(NANONET_AMX)

namespace {

constexpr int64_t kTile = 16;              // rows of a tile, and words of 4 bytes in one of its rows
constexpr int64_t kBlock = 2 * kTile;      // rows and columns of outputs at a time, and elements of D
constexpr int64_t kTileBytes = 1024;
static_assert(kBlock == kAmxColumns);

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  TileConfig() {
    for (int i = 0; i < 8; ++i) row_bytes[i] = 64, rows[i] = kTile;
  }
};

// to[j][i] = from[i][j] of 16 x 16 words.
void transpose(const __m512i* from, uint32_t* to) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(from[i], from[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(from[i], from[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // b[4 r + i]: in its lane l column 4 l + i of rows 4 r to 4 r + 3
    const __m512i even01 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88), odd01 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd);
    const __m512i even23 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
    const __m512i odd23 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
    _mm512_store_si512(to + (i + 0) * 16, _mm512_shuffle_i32x4(even01, even23, 0x88));
    _mm512_store_si512(to + (i + 4) * 16, _mm512_shuffle_i32x4(odd01, odd23, 0x88));
    _mm512_store_si512(to + (i + 8) * 16, _mm512_shuffle_i32x4(even01, even23, 0xdd));
    _mm512_store_si512(to + (i + 12) * 16, _mm512_shuffle_i32x4(odd01, odd23, 0xdd));
  }
}

// 32 rows of weight from `begin` on, as the tiles (block of D, half of the rows); 0 outside.
void pack_weight(const Bf16Product& p, int64_t begin, uint32_t* to) {
  for (int64_t block = 0; block < blocks_of(p.D); ++block) {
    const int64_t d = block * kBlock, count = p.D - d < kBlock ? p.D - d : kBlock;
    const __mmask32 inside = count == kBlock ? ~__mmask32(0) : (__mmask32(1) << count) - 1;
    for (int64_t half = 0; half < 2; ++half, to += kTileBytes / 4) {
      __m512i rows[16];
      for (int64_t i = 0; i < kTile; ++i) {
        const int64_t v = begin + half * kTile + i;
        rows[i] = v < p.V ? _mm512_maskz_loadu_epi16(inside, p.weight + v * p.weight_stride + d) : _mm512_setzero_si512();
      }
      transpose(rows, to);
    }
  }
}

// Tiles 0 to 3 = 32 rows of x by the 32 packed rows of weight. next: rows of weight to come, fetched meanwhile, or null.
void multiply(const char* x, const char* weight, int64_t blocks, const uint16_t* next, int64_t next_stride) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < blocks; ++i, x += 2 * kTileBytes, weight += 2 * kTileBytes) {
    for (int64_t row = 0; next != nullptr && row < kBlock; ++row)
      _mm_prefetch(reinterpret_cast<const char*>(next + row * next_stride + i * kBlock), _MM_HINT_T1);
    _tile_loadd(4, x, 64);
    _tile_loadd(6, weight, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, x + kTileBytes, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, weight + kTileBytes, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
}

void store_tiles(float* to, int64_t stride) {
  _tile_stored(0, to, stride * 4);
  _tile_stored(1, to + kTile, stride * 4);
  _tile_stored(2, to + kTile * stride, stride * 4);
  _tile_stored(3, to + kTile * stride + kTile, stride * 4);
}

}  // namespace

int64_t amx_packed_bytes(const Bf16Product& p) { return blocks_of(p.R) * blocks_of(p.D) * 2 * kTileBytes; }

int64_t amx_scratch_bytes(const Bf16Product& p) { return blocks_of(p.D) * 2 * kTileBytes + kBlock * kBlock * 4; }

void amx_pack(const Bf16Product& p, void* to) {
  char* at = static_cast<char*>(to);
  std::memset(at, 0, size_t(amx_packed_bytes(p)));
  const int64_t blocks = blocks_of(p.D);
  for (int64_t r = 0; r < p.R; ++r)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t d = block * kBlock, count = p.D - d < kBlock ? p.D - d : kBlock;
      char* tile = at + ((r / kBlock * blocks + block) * 2 + r % kBlock / kTile) * kTileBytes;
      std::memcpy(tile + r % kTile * 64, p.x + r * p.x_stride + d, size_t(count) * 2);
    }
}

void amx_product(const Bf16Product& p, const void* packed, int64_t begin, int64_t end, void* scratch) {
  const TileConfig config;
  _tile_loadconfig(&config);
  const int64_t blocks = blocks_of(p.D), bytes = blocks * 2 * kTileBytes;
  char* weight = static_cast<char*>(scratch);
  float* edge = reinterpret_cast<float*>(weight + bytes);
  for (int64_t v = begin; v < end; v += kBlock) {
    pack_weight(p, v, reinterpret_cast<uint32_t*>(weight));
    const int64_t columns = p.V - v < kBlock ? p.V - v : kBlock;
    for (int64_t r = 0; r < p.R; r += kBlock) {
      const int64_t rows = p.R - r < kBlock ? p.R - r : kBlock;
      float* to = p.out + r * p.out_stride + v;
      const uint16_t* next = r == 0 && v + 2 * kBlock <= p.V ? p.weight + (v + kBlock) * p.weight_stride : nullptr;
      multiply(static_cast<const char*>(packed) + r / kBlock * bytes, weight, blocks, next, p.weight_stride);
      if (rows == kBlock && columns == kBlock) {
        store_tiles(to, p.out_stride);
        continue;
      }
      store_tiles(edge, kBlock);
      for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * p.out_stride, edge + i * kBlock, size_t(columns) * 4);
    }
  }
  _tile_release();
}

#else

int64_t amx_packed_bytes(const Bf16Product&) { return 0; }
int64_t amx_scratch_bytes(const Bf16Product&) { return 0; }
void amx_pack(const Bf16Product&, void*) {}
void amx_product(const Bf16Product&, const void*, int64_t, int64_t, void*) {}

#endif

}  // namespace nanonet
