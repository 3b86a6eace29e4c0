"""Old name of mefar.classifier.edclip, for configurations on disk; goes with version 0.3."""

from mefar.classifier.edclip import EDCLIP as EDCLIP
