// Packing: fp32 rows or GGUF blocks into the layouts of layout.h, and back to fp32.
//
// Works on ranges of 32-column blocks, each written to its own place, so that threads and a streaming loader can fill one
// mapped file in any order. Who calls: capi_linear.cpp; step_*.cpp for single rows of a packed embedding.
#pragma once
#include "linear.h"

namespace headrace {

// Rows as they come from a checkpoint. The numbers of GGUF types are GGUF's own; the block formats hold 32 weights a block
// (K types: 256).
enum class SourceFormat : int32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q4_K = 12,
  Q5_K = 13,
  BF16 = 30,
};

// Bytes of a source row of k weights; 0 if k does not fill whole blocks or the format is unknown.
int64_t source_row_bytes(SourceFormat source, int64_t k);

// True if `source` rows can be packed as `w`'s format: F32, F16 and BF16 always, rounding to nearest; GGUF blocks only into
// the format with their group and range, code by code: Q4_0 -> I4G/32 symmetric, Q4_1 and Q4_K -> I4G/32 asymmetric,
// Q5_0 and Q8_0 -> I8G/32 symmetric, Q5_1 and Q5_K -> I8G/32 asymmetric. All are exact but the K types, whose products of
// two scales are rounded to fp16 (relative error 2^-11 of scale and bias).
bool can_pack(SourceFormat source, const PackedWeight& w);

// Fill blocks block0 … block1-1 of w.base (cast to writable). `rows`: the source rows from column 32*block0 on, or, for an
// interleaved weight, gate rows from 16*block0 on with `up` the up rows; `up` is null otherwise.
void pack_blocks(const PackedWeight& w, SourceFormat source, const void* rows, const void* up, int64_t block0, int64_t block1);

// Decode logical row n (interleaved: gate rows first, then up rows) to out[k].
void unpack_row(const PackedWeight& w, int64_t n, float* out);

}  // namespace headrace
