"""Everything that only a GPU can show, in stages: `tools/gpu_check.sh`; what came out stands in docs/gpu.md."""
