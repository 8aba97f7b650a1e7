"""The keys of SAELens' `cfg.json`, through its versions: the config of an SAE, of its training, of the whole run."""

from __future__ import annotations

from .keys import DATA, LOGGING, MACHINE, NO_INITIAL, STORED_TYPE, TRAINING, Keys, left

_NEURONPEDIA = "a name in a public catalog"
_OTHER_ARCHITECTURE = "only an architecture that is refused by name has it"

_RUN = {
    **left(STORED_TYPE, "dtype"),
    **left(
        MACHINE, "device", "act_store_device", "llm_device", "autocast", "autocast_lm", "compile_llm", "compile_sae"
    ),
    **left(MACHINE, "llm_compilation_mode", "sae_compilation_mode", "seed", "sae_lens_training_version"),
    **left("the hook's name says in whose names it is", "model_class_name"),
    **left("says how the model was called while training", "model_kwargs"),
    **left(_NEURONPEDIA, "neuronpedia_id"),
    **left(DATA, "dataset_path", "dataset_trust_remote_code", "context_size", "streaming", "is_dataset_tokenized"),
    **left(DATA, "seqpos_slice", "exclude_special_tokens", "use_cached_activations", "cached_activations_path"),
    **left(DATA, "use_chat_formatting", "disable_concat_sequences", "sequence_separator_token"),
    **left(DATA, "activations_mixing_fraction", "prefetch_llm_batches", "n_batches_in_buffer", "training_tokens"),
    **left(DATA, "finetuning_tokens", "store_batch_size_prompts", "train_batch_size_tokens", "training_architecture"),
    **left(NO_INITIAL, "b_dec_init_method", "from_pretrained_path", "decoder_orthogonal_init", "decoder_init_norm"),
    **left(NO_INITIAL, "decoder_heuristic_init", "decoder_heuristic_init_norm", "init_encoder_as_decoder_transpose"),
    **left(NO_INITIAL, "jumprelu_init_threshold"),
    **left(TRAINING, "normalize_sae_decoder", "noise_scale", "adam_beta1", "adam_beta2", "mse_loss_normalization"),
    **left(TRAINING, "l1_coefficient", "lp_norm", "scale_sparsity_penalty_by_decoder_norm", "l1_warm_up_steps"),
    **left(TRAINING, "l0_coefficient", "l0_warm_up_steps", "lr", "lr_scheduler_name", "lr_warm_up_steps", "lr_end"),
    **left(TRAINING, "lr_decay_steps", "n_restart_cycles", "finetuning_method", "use_ghost_grads"),
    **left(TRAINING, "feature_sampling_window", "dead_feature_window", "dead_feature_threshold"),
    **left(TRAINING, "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode", "pre_act_loss_coefficient"),
    **left(TRAINING, "jumprelu_tanh_scale", "jumprelu_ste_to_input", "target_l0", "use_sparse_activations"),
    **left(TRAINING, "aux_loss_coefficient", "matryoshka_widths", "use_matryoshka_aux_loss", "topk_threshold_lr"),
    **left(TRAINING, "n_batches_for_norm_estimate", "total_training_samples", "total_training_steps"),
    **left(TRAINING, "training_architecture_details", "tokens_per_buffer"),
    **left(LOGGING, "n_eval_batches", "eval_batch_size_prompts", "log_to_wandb", "log_activations_store_to_wandb"),
    **left(LOGGING, "log_optimizer_state_to_wandb", "log_weights_to_wandb", "wandb_project", "wandb_id", "run_name"),
    **left(LOGGING, "wandb_entity", "wandb_log_frequency", "eval_every_n_wandb_logs", "logger", "resume", "verbose"),
    **left(LOGGING, "resume_from_checkpoint", "n_checkpoints", "checkpoint_path", "save_final_checkpoint"),
    **left(LOGGING, "output_path", "hook_eval", "hook_point_eval"),
    **left("a result of training", "val_fvu", "val_l0", "alive_features", "l0", "explained_variance", "mse"),
    **left(_OTHER_ARCHITECTURE, "residual_threshold", "max_iterations", "stop_on_duplicate_support", "n_heads"),
    **left(_OTHER_ARCHITECTURE, "n_attn_layers", "bottleneck_factor", "sae_diff_type", "kval_topk", "tied_weights"),
    **left(_OTHER_ARCHITECTURE, "activation_normalization_factor"),
}

_PLACE = {
    "model_name": "",
    "hook_name": "",
    "hook_point": "hook_name says it",
    "hook_layer": "",
    "hook_point_layer": "hook_layer says it",
    "hook_head_index": "",
    "hook_point_head_index": "",
    "hook_name_out": "only a transcoder writes elsewhere",
    "hook_point_out": "only a transcoder writes elsewhere, and hook_name_out says where",
    "hook_layer_out": "the hook's name says it",
    "hook_head_index_out": "only a transcoder writes elsewhere",
    "hf_hook_name": "hook_name says it",
    "hf_hook_name_out": "only a transcoder writes elsewhere, and hook_name_out says where",
    "prepend_bos": "",
    "model_from_pretrained_kwargs": "",
}

TOP = Keys(
    heeded={
        **dict.fromkeys(("d_in", "d_model", "input_dim", "activation_dim", "d_out", "output_dim"), ""),
        **dict.fromkeys(("d_sae", "dict_size", "hidden_dim", "d_hidden", "num_latents", "n_features"), ""),
        "expansion_factor": "d_sae says the width",
        "architecture": "",
        "activation_fn": "architecture says it since version 6",
        "activation_fn_str": "architecture says it since version 6",
        "activation_fn_kwargs": "architecture and k say it since version 6",
        "k": "only a TopK SAE has it",
        "rescale_acts_by_decoder_norm": "only a TopK or BatchTopK SAE has it",
        "apply_b_dec_to_input": "",
        "normalize_activations": "",
        "norm_scaling_factor": "only normalize_activations expected_average_only_in has it",
        "reshape_activations": "",
        "finetuning_scaling_factor": "the weights have no scaling_factor",
        "metadata": "",
        "sae_lens_version": "",
        **_PLACE,
    },
    irrelevant=_RUN,
)
METADATA = Keys(heeded={"sae_lens_version": "the top of the file says it", **_PLACE}, irrelevant=_RUN)
ACTIVATION = Keys(heeded={"k": "only a TopK SAE has it"})
MODEL = Keys(
    heeded={
        "center_writing_weights": "changes only what is written to the stream of a model with LayerNorm",
        "fold_ln": "changes only what is read right after a norm",
        "fold_value_biases": "changes only what attention heads give",
        **dict.fromkeys(("revision", "checkpoint_index", "checkpoint_value"), ""),
    },
    irrelevant={
        **left("changes the logits, by one number for all", "center_unembed"),
        **left("changes no activation", "refactor_factored_attn_matrices"),
        **left(MACHINE, "device", "dtype", "torch_dtype", "n_devices", "device_map", "move_to_device"),
        **left(MACHINE, "attn_implementation", "trust_remote_code", "first_n_layers"),
        **left(MACHINE, "default_padding_side", "cache_dir", "local_files_only"),
        "default_prepend_bos": "prepend_bos says it",
    },
)
"""How the library opened the model: some of these settings change activations."""
