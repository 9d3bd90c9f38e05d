/* The entry is a function, as other plugin systems have it. */
__attribute__((visibility("default"))) const void* virtbay_plugin_entry(void);
const void* virtbay_plugin_entry(void) { return 0; }
