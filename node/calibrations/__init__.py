"""How calibrations travel: anchors name them by CALIBRATION records, whoever has one hands it out by its hash."""
