/* The options have no end. */
#include "virtbay/sdk/abi.h"

static const virtbay_option* DescribeOption(uint32_t type, uint32_t index) {
  static const virtbay_option kOption = {sizeof(virtbay_option), VIRTBAY_OPTION_TEXT, "again"};
  (void)type;
  (void)index;
  return &kOption;
}
#define OPTIONS_DESCRIBE DescribeOption
#include "options_base.h"
#include "plugin_base.h"
