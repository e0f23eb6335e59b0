// Whole KV blocks: their bytes to and from host memory, and from block to block.
#include <cstring>

#include "step.h"

namespace headrace {

int64_t StepProgram::block_bytes() const {
  int64_t bytes = 0;
  for (const BlockPart& part : block_parts_) bytes += part.bytes;
  return bytes;
}

bool StepProgram::copy_blocks(const BlockCopy* copies, int64_t count) {
  const auto is_block = [this](int64_t block) { return block >= 0 && block < desc_.num_blocks; };
  for (int64_t i = 0; i < count; ++i) {
    if (!is_block(copies[i].block)) return false;
    if (copies[i].kind == CopyKind::Duplicate && !is_block(copies[i].other)) return false;
  }
  for (int64_t i = 0; i < count; ++i) {
    const BlockCopy& copy = copies[i];
    char* host = reinterpret_cast<char*>(copy.other);
    for (const BlockPart& part : block_parts_) {
      char* block = part.base + copy.block * part.bytes;
      switch (copy.kind) {
        case CopyKind::Duplicate:
          std::memmove(block, part.base + copy.other * part.bytes, static_cast<size_t>(part.bytes));
          break;
        case CopyKind::Save:
          std::memcpy(host, block, static_cast<size_t>(part.bytes));
          host += part.bytes;
          break;
        case CopyKind::Load:
          std::memcpy(block, host, static_cast<size_t>(part.bytes));
          host += part.bytes;
          break;
      }
    }
  }
  return true;
}

}  // namespace headrace
