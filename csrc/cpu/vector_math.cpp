// Numbers that loops read as variables, so that compilers do not follow them into the arithmetic.
#include "vector_math.h"

namespace trimaran {

const float kSmallestExpFloat = ExpRange<float>::kSmallest;
const double kSmallestExpDouble = ExpRange<double>::kSmallest;

}  // namespace trimaran
