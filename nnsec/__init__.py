"""The domain: detectors, calibration, evidence, incidents, trust. Pure but for `adapters`."""
