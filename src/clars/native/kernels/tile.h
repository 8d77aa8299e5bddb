// A tile of a product of matrices that stays in registers while it is summed.
#pragma once

#include <algorithm>
#include <cstdint>

namespace clars {

#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

// Rows and vectors of a tile: with a row's worth of b and one number of a they fill AVX2's 16 registers.
constexpr int64_t TILE_ROWS = 4, TILE_VECTORS = 3;

// How far apart things lie: in `a` the rows of the tile and the terms of its sums, in `b` the terms, in the product the
// rows. The terms are `lines` times `terms`.
struct Layout {
  int64_t lines, terms;
  int64_t a_row, a_line, a_term;
  int64_t b_line, b_term;
  int64_t product_row;
};

// Adds to a tile of the product, or begins it with, the sums over all terms of a[row] * b[column].
template <int64_t ROWS, int64_t VECTORS>
void add_tile(const float* a, const float* b, float* product, const Layout& l, bool begin) {
  Vector sums[ROWS][VECTORS] = {};
  for (int64_t line = 0; line < l.lines; line++, a += l.a_line, b += l.b_line) {
    const float *one = a, *row = b;
    for (int64_t term = 0; term < l.terms; term++, one += l.a_term, row += l.b_term) {
      Vector seen[VECTORS];
#pragma GCC unroll 4
      for (int64_t v = 0; v < VECTORS; v++) seen[v] = *(const Vector*)(row + v * LANES);
#pragma GCC unroll 4
      for (int64_t k = 0; k < ROWS; k++)
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; v++) sums[k][v] += one[k * l.a_row] * seen[v];
    }
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < ROWS; k++)
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; v++) {
      Vector* to = (Vector*)(product + k * l.product_row + v * LANES);
      *to = begin ? sums[k][v] : *to + sums[k][v];
    }
}

// Of a product of so many rows and columns; beyond the last column, up to a whole vector, b and the product are touched.
inline void add_tiles(const float* a, const float* b, float* product, int64_t rows, int64_t columns, const Layout& l,
                      bool begin) {
  using Tile = void(const float*, const float*, float*, const Layout&, bool);
  static constexpr Tile* tiles[TILE_ROWS][TILE_VECTORS] = {
      {add_tile<1, 1>, add_tile<1, 2>, add_tile<1, 3>},
      {add_tile<2, 1>, add_tile<2, 2>, add_tile<2, 3>},
      {add_tile<3, 1>, add_tile<3, 2>, add_tile<3, 3>},
      {add_tile<4, 1>, add_tile<4, 2>, add_tile<4, 3>},
  };
  const int64_t vectors = (columns + LANES - 1) / LANES, tiles_of_row = (vectors + TILE_VECTORS - 1) / TILE_VECTORS;
  for (int64_t row = 0; row < rows; row += TILE_ROWS)
    for (int64_t i = 0; i < tiles_of_row; i++) {
      const int64_t v = i * vectors / tiles_of_row, next = (i + 1) * vectors / tiles_of_row;
      tiles[std::min(TILE_ROWS, rows - row) - 1][next - v - 1](
          a + row * l.a_row, b + v * LANES, product + row * l.product_row + v * LANES, l, begin);
    }
}

}  // namespace clars
