# framework/virtq, framework/io, framework/device.
virtbay_add_test(virtq_test
  SOURCES virtq_test.cc virtq_pair_test.cc
  LIBRARIES virtbay_virtq virtbay_guest)
virtbay_add_test(io_test SOURCES io_test.cc LIBRARIES virtbay_io)
