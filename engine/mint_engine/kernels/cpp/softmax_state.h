// The state of online softmax for a query row, and the size of the pages that it goes through.
#pragma once
#include <limits>

constexpr int PAGE = 16;  // tokens in a page
constexpr float NO_SCORE = -std::numeric_limits<float>::infinity();

// The largest score so far, and the sum of weights relative to it.
struct SoftmaxState {
  float peak, sum;
};
