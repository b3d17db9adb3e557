// The parts of a step's chunks and items that belong to one team.
#pragma once
#include "attend.h"
#include "lora.h"
#include "team.h"

inline Item team_part(const Item& item, const Worker& worker) {
  const int32_t start = std::max<int32_t>(item.start, int32_t(worker.first));
  return {start, std::min<int32_t>(item.start + item.rows, int32_t(worker.last)) - start, item.slot};
}

inline Chunk team_part(const Chunk& all, const Worker& worker) {
  const int64_t row = std::max(all.row, worker.first);
  return {row, std::min(all.row + all.tokens, worker.last) - row, all.position + row - all.row, all.table};
}
