# sdk/examples: each example device behind the in-process driver.
foreach(example console blk 9p)
  virtbay_add_test(example_${example}_test
    SOURCES example_${example}_test.cc
    LIBRARIES virtbay_guest)
  string(TOUPPER ${example} upper)
  target_compile_definitions(example_${example}_test
    PRIVATE VIRTBAY_${upper}_PLUGIN="$<TARGET_FILE:example_${example}>")
  add_dependencies(example_${example}_test example_${example})
endforeach()
