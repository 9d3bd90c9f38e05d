/* Nothing is wrong with it: one option of each kind, one of a kind that no host knows yet, and an
 * init that refuses one. */
#include <stddef.h>
#include <string.h>

#include "virtbay/sdk/abi.h"

static const virtbay_option kOptions[] = {
    {sizeof(virtbay_option), VIRTBAY_OPTION_TEXT, "text"},
    {sizeof(virtbay_option), VIRTBAY_OPTION_BOOLEAN, "boolean"},
    {sizeof(virtbay_option), VIRTBAY_OPTION_INTEGER, "integer"},
    {sizeof(virtbay_option), VIRTBAY_OPTION_NUMBER, "number"},
    {sizeof(virtbay_option), 99, "later"},
};
static const virtbay_option* DescribeOption(uint32_t type, uint32_t index) {
  return type == 0 && index < sizeof(kOptions) / sizeof(kOptions[0]) ? &kOptions[index] : NULL;
}
#define OPTIONS_DESCRIBE DescribeOption
#include "options_base.h"

static const virtbay_config_service* config;
static int32_t Load(const virtbay_host* host, virtbay_error* error) {
  (void)error;
  config = host->service(host, VIRTBAY_SERVICE_CONFIG);
  return VIRTBAY_OK;
}
#define ENTRY_LOAD Load
#include "device_base.h"
static int32_t Init(virtbay_device* device, virtbay_error* error) {
  char value[64];
  if (config->get(BaseOf(device)->host, "text", value, sizeof(value)) < 0) return VIRTBAY_OK;
  if (strcmp(value, "bad") != 0) return VIRTBAY_OK;
  strcpy(error->text, "option text: is bad: very");
  return VIRTBAY_INVALID_ARGUMENT;
}
#define OPS_INIT Init
#include "plugin_base.h"
