/* A shared library, but no plugin. */
__attribute__((visibility("default"))) const int something_else = 1;
