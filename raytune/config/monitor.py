"""Where a run is shown or published beside its own folder."""

from typing import ClassVar, Literal

from raytune.config.base import Group


class MonitorConfig(Group):
    built: ClassVar[bool] = False

    project: str | None = None
    """Project name for monitors that group runs."""
    trackio_space_id: str | None = None
    """Hugging Face space that shows Trackio's runs."""
    trackio_bucket_id: str | None = None
    """Hugging Face bucket that keeps Trackio's data."""
    trackio_static_space_id: str | None = None
    """Hugging Face space that shows Trackio's runs without a server."""
    use_swanlab: bool = False
    """Report to SwanLab."""
    swanlab_project: str | None = None
    """Project name in SwanLab."""
    swanlab_workspace: str | None = None
    """Workspace in SwanLab."""
    swanlab_run_name: str | None = None
    """Name of the run in SwanLab."""
    swanlab_mode: Literal["cloud", "local"] = "cloud"
    """Send to the cloud, or write files only."""
    swanlab_api_key: str | None = None
    """Key of the SwanLab account."""
    swanlab_logdir: str | None = None
    """Folder of SwanLab's files."""
    swanlab_lark_webhook_url: str | None = None
    """Lark webhook that is told when the run ends."""
    swanlab_lark_secret: str | None = None
    """Secret of that webhook."""
    push_to_hub: bool = False
    """Upload the result to the Hugging Face hub."""
    hub_model_id: str | None = None
    """Repository for the upload."""
    hub_revision: str | None = None
    """Branch for the upload."""
    hub_token: str | None = None
    """Token for the upload."""
    hub_private_repo: bool | None = None
    """Make that repository private."""
