"""Files of others, as text."""

from __future__ import annotations

# A file of the published layout: shared settings under an anchor, one configuration for each experiment.
ADAPTER_CONFIG = """
base: &base
  do_adaptation: !!bool False
  deep_equlibrium_mode: !!bool True
  interpolation_mode: 'bilinear'
  deform_resolution: None
  dem_image_scale: !!bool True
  inner_epochs: 5
  num_phi_layers: 2
  adapter_coarse_resolution: [4, 4]
  adapter_num_layers: 3
  adapter_channels: [3, 16, 32, 64]
  adapter_filter_size: [3, 3, 3]
  adapter_pool_rate: [2, 2, 2]
  augment_layer_id: [0, 1]
  unaugment_layer_id: [0, 1]
base_deit: &base_deit
  <<: *base
  model_name: 'deit'
dem_deit:
  <<: *base_deit
  do_adaptation: !!bool True
  dem_lr: 0.01
  adapter_coarse_resolution: [10, 4]
  adapter_num_layers: 2
  adapter_channels: [3, 64, 128]
  adapter_filter_size: [5, 3]
  adapter_pool_rate: [4, 2]
  augment_layer_id: [-1, 0, 1]
  unaugment_layer_id: [-100]
dem_resnet:
  <<: *base
  do_adaptation: !!bool True
  model_name: 'resnet'
"""
