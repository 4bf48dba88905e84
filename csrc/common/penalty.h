// What a weighted loss charges for a difference d, and its derivative times a weight w, for numbers
// and for vectors of them alike. Include it after absolute() and square_root() of their types.
#pragma once
#include "weighted_loss.h"

namespace srk::SRK_ISA {

template <class F>
struct L1 {
  SRK_HD explicit L1(F) {}

  template <class V>
  SRK_HD V value(V d) const {
    return absolute(d);
  }
  // sign(0) = sign(NaN) = 0, as torch.sgn, whatever the weight w
  template <class V>
  SRK_HD V slope(V d, V w) const {
    return d > F(0) ? w : (d < F(0) ? -w : V{});
  }
};

template <class F>
struct Charbonnier {
  F eps;
  SRK_HD explicit Charbonnier(F parameter) : eps(parameter) {}

  template <class V>
  SRK_HD V value(V d) const {
    return square_root(d * d + eps);
  }
  template <class V>
  SRK_HD V slope(V d, V w) const {
    return w * (d / value(d));
  }
};

template <class F>
struct Mse {
  SRK_HD explicit Mse(F) {}

  template <class V>
  SRK_HD V value(V d) const {
    return d * d;
  }
  template <class V>
  SRK_HD V slope(V d, V w) const {
    return w * (d + d);
  }
};

template <class F>
struct Huber {
  F delta;
  SRK_HD explicit Huber(F parameter) : delta(parameter) {}

  template <class V>
  SRK_HD V value(V d) const {
    const V size = absolute(d);
    return size <= delta ? F(0.5) * d * d : delta * (size - F(0.5) * delta);
  }
  template <class V>
  SRK_HD V slope(V d, V w) const {
    const V most = V{} + delta;
    return w * (d > delta ? most : (d < -delta ? -most : d));
  }
};

}  // namespace srk::SRK_ISA
