"""All groups together: what a run is told, checked and frozen."""

from pydantic import BaseModel, ConfigDict

from raytune.config.adapter import AdapterConfig
from raytune.config.badam import BAdamConfig
from raytune.config.cluster import ClusterConfig
from raytune.config.data import DataConfig
from raytune.config.dataio import DataIOConfig
from raytune.config.evaluation import EvalConfig
from raytune.config.export import ExportConfig
from raytune.config.fsdp import FsdpConfig
from raytune.config.generation import GenerationConfig
from raytune.config.kernels import KernelConfig
from raytune.config.kt import KTConfig
from raytune.config.loss import LossConfig
from raytune.config.lowrank import LowRankConfig
from raytune.config.media import MediaConfig
from raytune.config.megatron import MegatronConfig
from raytune.config.model import ModelConfig
from raytune.config.monitor import MonitorConfig
from raytune.config.oft import OftConfig
from raytune.config.optim import OptimConfig
from raytune.config.output import OutputConfig
from raytune.config.parallel import ParallelConfig
from raytune.config.policy import PolicyConfig
from raytune.config.precision import PrecisionConfig
from raytune.config.preference import PreferenceConfig
from raytune.config.profiler import ProfilerConfig
from raytune.config.quant import QuantConfig
from raytune.config.reward import RewardConfig
from raytune.config.rl import RLConfig
from raytune.config.rollout import RolloutConfig
from raytune.config.sampling import SamplingConfig
from raytune.config.template import TemplateConfig
from raytune.config.train import TrainConfig


class RunConfig(BaseModel):
    """The groups of one run, each frozen. Files stay flat; `raytune.config.load` puts each key into its group.

    Example: RunConfig(model=ModelConfig(model_name_or_path="smollm2-135m-instruct")).train.stage == "sft"
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    template: TemplateConfig = TemplateConfig()
    dataio: DataIOConfig = DataIOConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    precision: PrecisionConfig = PrecisionConfig()
    evaluation: EvalConfig = EvalConfig()
    output: OutputConfig = OutputConfig()
    cluster: ClusterConfig = ClusterConfig()
    fsdp: FsdpConfig = FsdpConfig()
    sampling: SamplingConfig = SamplingConfig()
    export: ExportConfig = ExportConfig()
    quant: QuantConfig = QuantConfig()
    kernels: KernelConfig = KernelConfig()
    loss: LossConfig = LossConfig()
    lowrank: LowRankConfig = LowRankConfig()
    badam: BAdamConfig = BAdamConfig()
    oft: OftConfig = OftConfig()
    preference: PreferenceConfig = PreferenceConfig()
    rl: RLConfig = RLConfig()
    policy: PolicyConfig = PolicyConfig()
    generation: GenerationConfig = GenerationConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    media: MediaConfig = MediaConfig()
    monitor: MonitorConfig = MonitorConfig()
    profiler: ProfilerConfig = ProfilerConfig()
    parallel: ParallelConfig = ParallelConfig()
    megatron: MegatronConfig = MegatronConfig()
    kt: KTConfig = KTConfig()

    @property
    def trains(self) -> bool:
        """Whether `train` trains: do_train left out means yes, unless only evaluation or prediction is asked for."""
        alone = self.train.do_eval or self.train.do_predict
        return not alone if self.train.do_train is None else self.train.do_train

    @property
    def packs(self) -> bool:
        """Whether rows are filled with several samples: neat_packing does, and pt unless packing is false."""
        packing = self.data.packing
        return self.data.neat_packing or (self.train.stage == "pt" if packing is None else packing)
