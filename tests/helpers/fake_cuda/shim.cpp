// One CUDA device that is not there: enough for PyTorch's device guards, streams and events, and for autograd's thread
// of the device. Nothing is allocated and nothing is computed. The library is loaded before PyTorch, so that its
// functions are found before those of libcudart, libc10_cuda and the driver (its own name is that of the driver).
#include <cstdint>
#include <cstring>

namespace {
constexpr int kSuccess = 0;
char event_of_all, streams_of_all[64];
int streams = 0;
}  // namespace

#define SUCCESS(name) int name(...) { return kSuccess; }

extern "C" {
int cudaGetDeviceCount(int* count) { *count = 1; return kSuccess; }
int cudaGetDevice(int* device) { *device = 0; return kSuccess; }
int cudaDriverGetVersion(int* version) { *version = 13000; return kSuccess; }
int cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -1;
  return kSuccess;
}
int cudaEventCreateWithFlags(void** event, unsigned) { *event = &event_of_all; return kSuccess; }
int cudaStreamCreateWithPriority(void** stream, unsigned, int) {
  *stream = &streams_of_all[streams++ % 64];
  return kSuccess;
}
int cudaStreamIsCapturing(void*, int* capturing) { *capturing = 0; return kSuccess; }
SUCCESS(cudaSetDevice) SUCCESS(cudaDeviceSynchronize) SUCCESS(cudaGetLastError) SUCCESS(cudaPeekAtLastError)
SUCCESS(cudaEventRecord) SUCCESS(cudaEventDestroy) SUCCESS(cudaEventQuery) SUCCESS(cudaEventSynchronize)
SUCCESS(cudaStreamWaitEvent) SUCCESS(cudaStreamQuery) SUCCESS(cudaStreamSynchronize)

// The driver, which PyTorch's libraries ask for by name.
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  if (flags) *flags = 0;
  if (active) *active = 0;
  return kSuccess;
}
SUCCESS(cuCtxGetCurrent) SUCCESS(cuCtxSetCurrent) SUCCESS(cuDeviceGet) SUCCESS(cuDeviceGetAttribute)
SUCCESS(cuDevicePrimaryCtxRetain) SUCCESS(cuFuncGetAttribute) SUCCESS(cuFuncSetAttribute) SUCCESS(cuFuncSetCacheConfig)
SUCCESS(cuGetErrorString) SUCCESS(cuLaunchCooperativeKernel) SUCCESS(cuLaunchKernel) SUCCESS(cuLinkAddData_v2)
SUCCESS(cuLinkComplete) SUCCESS(cuLinkCreate_v2) SUCCESS(cuModuleGetFunction) SUCCESS(cuModuleLoad)
SUCCESS(cuModuleLoadData) SUCCESS(cuModuleLoadDataEx) SUCCESS(cuModuleUnload)
SUCCESS(cuOccupancyMaxActiveBlocksPerMultiprocessor) SUCCESS(cuPointerGetAttribute) SUCCESS(cuTensorMapEncodeTiled)
}

namespace c10::cuda {  // the guards of PyTorch
bool hasPrimaryContext(signed char) { return false; }
int GetDeviceCount(int* count) { *count = 1; return kSuccess; }
signed char device_count() noexcept { return 1; }
signed char device_count_ensure_non_zero() { return 1; }
int GetDevice(signed char* device) { *device = 0; return kSuccess; }
int SetDevice(signed char, bool) { return kSuccess; }
int MaybeSetDevice(signed char) { return kSuccess; }
signed char ExchangeDevice(signed char) { return 0; }
signed char MaybeExchangeDevice(signed char) { return 0; }
signed char current_device() { return 0; }
void device_synchronize() {}
}  // namespace c10::cuda
