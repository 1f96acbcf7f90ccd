"""h-space content injection (InjectFusion, WACV 2024): blending bottleneck features, traces of them, and sampling."""
