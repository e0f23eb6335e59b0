// The per-ISA kernels of everything that is not a matrix product: norms, rotation, KV writes, attention, logit scans.
//
// One table of function pointers per ISA, filled in kernels_<isa>.cpp and chosen once by `kernels()`. Callers own
// all memory; nothing allocates or throws. Threads call kernels on disjoint rows or items.
#pragma once
#include <cstdint>

namespace headrace {

enum class KvType : int32_t { Bf16 = 0, Int8 = 1 };

// KV cache of one layer, in blocks of `block_size` tokens (a multiple of 16), per (block, kv head):
//   K [block_size/16][dim/2][16 tokens][2]   tokens in lanes: a pair of channels per lane (operand of q.k)
//   V [block_size/2][dim][2 tokens]          channels in lanes: a pair of tokens per lane (operand of p.v)
// of bf16, or of int8 followed by one bf16 scale per token, [block_size]: value = scale * int. The scale is max|x| / 127,
// rounded up to bf16; of a token whose numbers are not finite it is NaN. In int8, K is kept as its Hadamard transform, by
// blocks of hadamard_block() channels and unscaled: it spreads the few large channels of keys over all of them, and
// transformed queries make the same scores, times the size of a block.
// dim is head_dim rounded up to 16; the padding stays zero. The last token a sequence writes into a block it has just
// begun zeroes the V behind it (int8: its scales), so that masked lanes (weight 0) never meet another sequence's NaN.
struct KvLayer {
  char* k;
  char* v;
  int64_t block_stride;  // bytes from one block to the next: kv_heads * head_stride
  int64_t head_stride;   // bytes from one kv head to the next
  int32_t block_size, kv_heads, head_dim, dim;
  KvType type;
  int32_t reserved;
};

// Bytes of K (or of V) of one kv head in one block.
constexpr int64_t kv_head_bytes(KvType type, int64_t block_size, int64_t dim) {
  return type == KvType::Int8 ? block_size * (dim + 2) : block_size * dim * 2;
}

// The largest power of two that divides the head size.
constexpr int64_t hadamard_block(int64_t head_dim) { return head_dim & -head_dim; }

// Where one token's K and V go.
struct KvSlot {
  int32_t block, offset;
  int32_t clears_tail;  // 1: also zero V behind this offset in the block
};

struct QkWriteArgs {
  const float* src;  // [T, ld_src]: q heads, k heads, v heads
  int64_t ld_src;
  float* dst;  // [T, ld_dst]: rotated q
  int64_t ld_dst;
  const float *q_norm, *k_norm;  // [head_dim] or null
  float eps;
  const float *cos, *sin;  // [T, half]; null: no rotation
  int32_t half;            // rotated pairs (i, i + half)
  int32_t num_heads;
  const KvLayer* kv;
  const KvSlot* slots;  // [T]
};

struct AttentionArgs {
  const float* q;  // [T, ldq]
  int64_t ldq;
  float* out;  // [T, ldo]
  int64_t ldo;
  const KvLayer* kv;
  int32_t group;  // query heads per kv head
  float scale;
  float softcap;             // 0: none
  int32_t half;              // rotated pairs of a head; 0: none
  const float* sink_logits;  // [query heads] or null: one more score in each softmax, without a value
  const float *turn_cos, *turn_sin;  // [T, half]: turns a query to where it stands among sinks and window
};

// Some (token, query head of one group) pairs of one sequence: pairs first … last-1, pair = token * group + head.
struct AttentionItem {
  const int32_t* blocks;
  int32_t token0;  // packed index of the sequence's first token in this step
  int32_t pos0;    // its position
  int32_t kv_head;
  int32_t first, last;
  int32_t chunk;        // with `partial`: the one chunk of positions to attend to; kSinkChunk: the sinks
  int32_t window;       // positions that a token sees, itself included; 0: all
  int32_t num_sinks;    // positions 0 … num_sinks-1 are seen as well, by turned queries; they end before the window begins
  int32_t num_evicted;  // blocks in front of the window that are missing from `blocks`
  int32_t reserved;
  float* partial;  // null: attend to all and write the output; else o [pairs, dim], m [pairs], l [pairs] go here
};

constexpr int kMaxItemRows = 64;   // pairs in an item at most
constexpr int kKvTile = 64;        // positions per online-softmax step, aligned to absolute positions
constexpr int kKvChunk = 512;      // positions whose softmax is made apart and merged, in order: a unit to split work by
constexpr int kSinkChunk = -1;
constexpr int kMaxHeadDim = 512;

// Scratch bytes one thread needs for attention items of this padded head size.
constexpr int64_t attention_scratch_bytes(int64_t dim) {
  return kMaxItemRows * (dim * 2 + dim * 8 + 64 + 24) + 1024;
}

// Floats of one partial result.
constexpr int64_t attention_partial_floats(int64_t pairs, int64_t dim) { return pairs * (dim + 2); }

// What one scan of a row's logits finds.
struct LogitScan {
  float best;        // largest logit
  int32_t best_id;   // its lowest index
  int32_t num_bad;   // NaN or +inf entries
};

struct Kernels {
  // out = (add ? out : 0) + x / sqrt(mean(x^2) + eps) * weight
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, bool add, float* out);
  // y[i] *= scale
  void (*scale)(float* y, int64_t n, float scale);
  // heads head0 … head1-1 of one token, counted over q heads, then k heads, then v heads
  void (*qk_write)(const QkWriteArgs& args, int64_t token, int32_t head0, int32_t head1);
  void (*attention)(const AttentionArgs& args, const AttentionItem& item, void* scratch);
  // Merge the partial results of an item's chunks, one after another in memory, and write the output.
  void (*attention_merge)(const AttentionArgs& args, const AttentionItem& item, float* partials, int32_t count,
                          void* scratch);
  // y[i] = cap * tanh(y[i] * scale / cap), or y[i] * scale when cap is 0
  void (*finish_logits)(float* y, int64_t n, float scale, float cap);
  LogitScan (*scan_logits)(const float* y, int64_t n);
  // sum of exp((y[i] - best) * inverse_temperature), blocks of fixed size in ascending order, blocks added in double
  double (*sum_exp)(const float* y, int64_t n, float best, float inverse_temperature);
  // append (index) of entries >= threshold to out until `capacity`; returns how many there are in all
  int64_t (*collect_ge)(const float* y, int64_t n, float threshold, int32_t* out, int64_t capacity);
};

const Kernels& kernels();          // the table of the chosen ISA
extern const Kernels kKernelsGeneric;
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;

}  // namespace headrace
