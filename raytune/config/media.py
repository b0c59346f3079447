"""Images, videos and sounds."""

from typing import Any, ClassVar

from pydantic import Field

from raytune.config.base import Group


class MediaConfig(Group):
    built: ClassVar[bool] = False

    image_max_pixels: int = Field(768 * 768, ge=1)
    """Larger images are shrunk to so many pixels."""
    image_min_pixels: int = Field(32 * 32, ge=1)
    """Smaller images are enlarged to so many pixels."""
    image_do_pan_and_scan: bool = False
    """Cut images into crops (gemma3)."""
    crop_to_patches: bool = False
    """Cut images into patches (internvl)."""
    image_grid_pinpoints: Any = None
    """Resolutions an image may be tiled to, as [[height, width], ...] (llava-next)."""
    spatial_merge_size: int | None = Field(None, ge=1)
    """Neighbouring patches that become one token, per side (qwen2-vl)."""
    video_max_pixels: int = Field(256 * 256, ge=1)
    """Larger frames are shrunk to so many pixels."""
    video_min_pixels: int = Field(16 * 16, ge=1)
    """Smaller frames are enlarged to so many pixels."""
    video_fps: float = Field(2.0, gt=0)
    """Frames taken per second of video."""
    video_maxlen: int = Field(128, ge=1)
    """Most frames taken of one video."""
    use_audio_in_video: bool = False
    """Use the sound of videos."""
    audio_sampling_rate: int = Field(16000, ge=1)
    """Samples per second of sound."""
    freeze_vision_tower: bool = True
    """Leave the image encoder as it is."""
    freeze_multi_modal_projector: bool = True
    """Leave the bridge between image encoder and language model as it is."""
    freeze_language_model: bool = False
    """Leave the language model as it is."""
