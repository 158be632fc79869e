// Importing the extension is what registers its kernels; as a Python module it says what its CUDA kernels are built for.

#include <Python.h>

#ifndef LEANDETR_CUDA_ARCHITECTURES
#define LEANDETR_CUDA_ARCHITECTURES ""
#endif

extern "C" PyObject* PyInit_leandetr_ops(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "leandetr_ops", "Compiled kernels of models.ops.", -1};
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr &&
      PyModule_AddStringConstant(module, "cuda_architectures", LEANDETR_CUDA_ARCHITECTURES) != 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
