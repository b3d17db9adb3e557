// What softmax online knows of a query row.
#pragma once
#include <limits>

constexpr int PAGE = 16;  // tokens of a page
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// The largest score, and the sum of weights relative to it.
struct State {
  float peak, sum;
};
