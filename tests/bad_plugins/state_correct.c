/* Nothing is wrong with this one's state. */
#include "state_base.h"
