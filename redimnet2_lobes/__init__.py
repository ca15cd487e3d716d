"""ReDimNet2 speaker encoders as SpeechBrain lobes.

The network:
 * redimnet2: the network, from waveforms to embeddings
 * front_end: waveforms to log-mel features
 * pooling: attentive statistics pooling
 * lengths: lengths and masks of padded batches
 * tiles, weighted_sum, residual_training: work in pieces that fit the cache

For training:
 * losses, schedules: margin losses; learning rate and margin at every step
 * training_data, batches: which utterances there are, and in what order
 * shards, crops, augment: reading, random crops, noise and reverberation
 * checkpoints, fine_tuning: going on from a checkpoint, or from a pretraining

For use:
 * folding: a faster copy of a trained network
 * audio, inference, embeddings: reading files; embeddings of many, kept
 * scoring, plda, calibration: from embeddings to scores
 * metrics, plots: error rates and their pictures
 * model_folder, loading: folders that SpeechBrain's inference classes load
 * variants: B0 to B6 and which a network is
 * published, released, convert: the published checkpoints
 * command_line, long_files: the command redimnet2
 * push, model_card, single_file: the hub
 * export, onnx_graph, quantization, onnx_encoder: ONNX
 * results: what an evaluation found
 * download, whole_files: files that appear when they are complete
 * folder_lock: a folder that one process at a time may write

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
