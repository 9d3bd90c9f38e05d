virtbay_add_test(vhost_user_test
  SOURCES vhost_user_test.cc vhost_user_memory_test.cc vhost_user_server_test.cc
  LIBRARIES virtbay_vhost_user)
