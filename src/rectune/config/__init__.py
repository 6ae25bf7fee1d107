"""Settings of every verb: a TOML recipe plus command-line overrides become one frozen config.

`groups.py` has the groups of settings that verbs share, `verbs.py` the config of each verb, `parsing.py` reads them.
"""

from rectune.config.groups import BackendConfig as BackendConfig
from rectune.config.groups import CheckpointConfig as CheckpointConfig
from rectune.config.groups import DataConfig as DataConfig
from rectune.config.groups import GradingConfig as GradingConfig
from rectune.config.groups import LoggingConfig as LoggingConfig
from rectune.config.groups import LoraConfig as LoraConfig
from rectune.config.groups import MemoryConfig as MemoryConfig
from rectune.config.groups import ModelConfig as ModelConfig
from rectune.config.groups import NucleusConfig as NucleusConfig
from rectune.config.groups import ObjectiveConfig as ObjectiveConfig
from rectune.config.groups import ObjectiveNames as ObjectiveNames
from rectune.config.groups import OptimConfig as OptimConfig
from rectune.config.groups import PromptConfig as PromptConfig
from rectune.config.groups import RowConfig as RowConfig
from rectune.config.groups import SamplingConfig as SamplingConfig
from rectune.config.groups import SelectionConfig as SelectionConfig
from rectune.config.groups import Settings as Settings
from rectune.config.groups import Several as Several
from rectune.config.groups import SplitConfig as SplitConfig
from rectune.config.groups import StepConfig as StepConfig
from rectune.config.groups import StopTexts as StopTexts
from rectune.config.groups import TaskConfig as TaskConfig
from rectune.config.parsing import as_flags as as_flags
from rectune.config.parsing import dump_config as dump_config
from rectune.config.parsing import flag as flag
from rectune.config.parsing import load_config as load_config
from rectune.config.parsing import read_toml as read_toml
from rectune.config.parsing import settings_by_group as settings_by_group
from rectune.config.parsing import typed as typed
from rectune.config.verbs import AnswerConfig as AnswerConfig
from rectune.config.verbs import CheckConfig as CheckConfig
from rectune.config.verbs import CompareConfig as CompareConfig
from rectune.config.verbs import DiagnoseConfig as DiagnoseConfig
from rectune.config.verbs import EvalConfig as EvalConfig
from rectune.config.verbs import MergeConfig as MergeConfig
from rectune.config.verbs import ReproduceConfig as ReproduceConfig
from rectune.config.verbs import RFTConfig as RFTConfig
from rectune.config.verbs import RLConfig as RLConfig
from rectune.config.verbs import SampleConfig as SampleConfig
from rectune.config.verbs import TrainConfig as TrainConfig
from rectune.config.verbs import TrainerConfig as TrainerConfig
from rectune.config.verbs import WeighConfig as WeighConfig
