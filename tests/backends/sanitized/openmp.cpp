// OpenMP's parallel regions on threads of the standard library. ThreadSanitizer sees these start
// and end, as it does not see libgomp's, which is built without it: it would take every region for
// a race. Linked into the core in place of libgomp.
#include <thread>
#include <vector>

namespace {
thread_local int team_size = 1, member = 0;
}

extern "C" {

int omp_get_num_threads() { return team_size; }

int omp_get_thread_num() { return member; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned size, unsigned) {
  const auto join_in = [=](int index) {
    team_size = int(size);
    member = index;
    body(data);
    team_size = 1;
    member = 0;
  };
  std::vector<std::thread> team;
  for (int index = 1; index < int(size); ++index) team.emplace_back(join_in, index);
  join_in(0);
  for (std::thread& thread : team) thread.join();
}

}  // extern "C"
