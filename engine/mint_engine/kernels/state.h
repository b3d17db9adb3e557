// The state of online softmax for a query row.
#pragma once
#include <limits>

constexpr int PAGE = 16;  // tokens in a page
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// The largest score so far, and the sum of weights relative to it.
struct State {
  float peak, sum;
};
