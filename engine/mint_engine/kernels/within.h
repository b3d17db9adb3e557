// The parts of a step's stretches and items that belong to one team.
#pragma once
#include "attend.h"
#include "lora.h"
#include "team.h"

inline Item within(const Item& item, const Place& place) {
  const int32_t start = std::max<int32_t>(item.start, int32_t(place.first));
  return {start, std::min<int32_t>(item.start + item.rows, int32_t(place.last)) - start, item.slot};
}

inline Stretch within(const Stretch& all, const Place& place) {
  const int64_t row = std::max(all.row, place.first);
  return {row, std::min(all.row + all.tokens, place.last) - row, all.position + row - all.row, all.table};
}
