// Packed linear layers: one weight layout per format, shared by every ISA path.
//
// Convention for all integer formats: weights are stored UNSIGNED (u8 or u4), activations are SIGNED int8. This is the
// operand order of vpdpbusd (AVX512/AVX-VNNI) and TDPBSUD with A signed (AMX); NEON flips the top bit of the weight.
// Signed int8 weights are stored as w + 128 and corrected by starting the int32 accumulator at -128 * sum(activations).
//
// Determinism: y[m][n] depends only on row m of x, row n of w and the format. Never on M, on the thread count, on how
// rows are blocked or on the ISA for the integer part; float rescaling keeps one operation order (k ascending by group).
//
// Who calls: capi_linear.cpp (single ops) and step_*.cpp (whole steps). No allocation, no exceptions, no globals here.
//
// Where the bytes lie is layout.h's affair. What callers may rely on: prepared activations are one self-contained record of
// act_row_bytes() per row, so a record may be moved, or linear() given a pointer to row i of a larger buffer; a buffer is
// 64-byte aligned. A row with a NaN or infinity in x gives NaN in the outputs it reaches, and in no other row.
#pragma once
#include <cstdint>

namespace headrace {

enum class WeightFormat : int32_t {
  F32 = 0,    // [N,K] fp32, fallback and tests
  BF16 = 1,   // bf16 weights, bf16-rounded activations, fp32 accumulation
  I8 = 2,     // int8, one scale per output channel; activations int8 with one scale per token
  I8G = 3,    // int8 in groups of `group` along K, scale per group (+ bias when asymmetric); activations int8 per group
  I4G = 4,    // uint4 in groups of 32/64/128, scale and bias per group; activations int8 per group
  I8R = 5,    // int8 in groups of 64/128/192/256, both sides rotated first (layout.h): few rescalings, small error
};

enum class Epilogue : int32_t {
  Store = 0,  // y[m][n] = v
  Add = 1,    // y[m][n] += v
  Glu = 2,    // weight packed with gate/up interleaved in blocks of 16 columns; y [M, N/2] = act(gate) * up
};

enum class Activation : int32_t { Silu = 0, GeluTanh = 1, Gelu = 2, Relu2 = 3 };

// A packed weight. `base` is 64-byte aligned (often inside a mapped cache file). N and K are logical; padding is internal.
struct PackedWeight {
  WeightFormat format;
  int32_t group;       // 0 for F32, BF16, I8
  int32_t asymmetric;  // 1: a float bias per group (y += bias * sum(x_group))
  int32_t interleaved; // 1: gate/up interleaved for Epilogue::Glu
  int64_t n, k;
  const void* base;
};

// Bytes of a packed weight of this shape, padding included. Interleaved weights pad gate and up to 16 columns each: for
// them pass packed_columns() as n (layout.h) or use the second form.
int64_t packed_bytes(WeightFormat format, int64_t n, int64_t k, int32_t group, int32_t asymmetric);
int64_t packed_bytes(const PackedWeight& w);

// Bytes of the prepared activations of m rows for weights of (format, k, group): m records of act_row_bytes each.
int64_t act_row_bytes(WeightFormat format, int64_t k, int32_t group);
int64_t act_bytes(WeightFormat format, int64_t k, int32_t group, int64_t m);

// Prepare rows m0..m1-1 of x [m, ldx] (fp32) into `acts` (laid out for m rows): quantize or round. Threads take
// disjoint row ranges; a barrier must follow before linear() reads them.
void prepare_rows(WeightFormat format, int64_t k, int32_t group, const float* x, int64_t ldx, int64_t m, int64_t m0,
                  int64_t m1, void* acts);

// Memory that will be read after a layer, asked for meanwhile: products of many rows leave memory idle. Piece after piece.
struct Fetches {
  const uint8_t* at;
  int64_t left;                 // bytes of the present piece
  bool (*next)(Fetches* self);  // moves on to the next piece; false: there is none
};

struct LinearArgs {
  const PackedWeight* w;
  const void* acts;
  int64_t m;
  float* y;
  int64_t ldy;
  const float* bias;  // [N] or null; interleaved: blocks of 16 gate, 16 up columns, each part padded to 16
  Epilogue epilogue;
  Activation activation;
  Fetches* fetches = nullptr;  // of this thread
};

// This thread's share (a contiguous range of 32-column blocks, and for large m row blocks) of y = epilogue(x w^T).
// All `threads` threads call it with the same args; no barrier inside. Outputs past column N (Glu: N/2) are not touched.
void linear(const LinearArgs& args, int tid, int threads);

}  // namespace headrace
