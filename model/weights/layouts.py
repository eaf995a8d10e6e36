"""The layouts of weights that other libraries write, as data: where the backbone is, and what its tensors are called.

A layout is a root, the start of the names of the backbone's tensors, and a table of names behind it. Rules are regular
expressions at the start of a name; in a replacement `<1+1>` is the number in the first group plus one. docs/export.md
lists the libraries, and tests/golden/weight_layouts.json names and shapes that their own classes wrote.
"""

from __future__ import annotations

from dataclasses import dataclass

Rules = tuple[tuple[str, str], ...]

# Names that only wrap a network: entries of checkpoints, and what DDP, FSDP, torch.compile and Lightning add.
WRAPPERS = (
    r"(?:(?:state_dict|model_state_dict|model_state|model|module|net|network|params|ema|model_ema|weights|student_model"
)
WRAPPERS += r"|classy_state_dict|base_model|_orig_mod|_forward_module|_fsdp_wrapped_module)\.)+"

# The backbone's place, the preferred one first where a file has several: what a library evaluates, then its copy.
ROOTS = (
    "teacher.backbone.", "teacher.module.backbone.", "student.module.backbone.", "student.backbone.",  # DINO, iBOT
    "backbone.",  # swave, solo-learn, lightly, mmpretrain, mmselfsup, Barlow Twins, VICReg, Lightning
    "trunk._feature_blocks.", "trunk.",  # VISSL
    "encoder_q.", "module.encoder_q.", "base_encoder.", "module.base_encoder.",  # MoCo v1 and v2, v3
    "online_encoder.net.", "online_network.", "online_encoder.", "encoder.", "feature_extractor.",  # BYOL and others
    "resnet.", "vit.", "dinov2.", "dinov2_with_registers.", "dinov3_vit.", "convnext.",  # Hugging Face's classifiers
    "teacher.", "student.", "",  # published SwAV, torchvision, timm, MAE, DINOv2: the backbone stands at the top
)  # fmt: skip

# Projection heads and prototypes under their names here; their shapes decide whether they fit.
HEADS: Rules = (
    (r"projection_head\.layers\.", "projection_head."),  # lightly
    (r"projection_head\.", "projection_head."),  # swave, published SwAV
    (r"projector\.", "projection_head."),  # solo-learn, Barlow Twins, VICReg
    (r"neck\.projection_neck\.", "projection_head."),  # mmselfsup, mmpretrain
    (r"heads\.0\.projection_head\.", "projection_head."),  # VISSL
    (r"heads\.0\.prototypes(\d+)\.", r"prototypes.prototypes\1."),
    (r"prototypes\.(?:heads\.)?(\d+)\.", r"prototypes.prototypes\1."),  # lightly; solo-learn's DeepClusterV2
    (r"head\.(?:loss(?:_module)?\.)?prototypes\.prototypes(\d+)\.", r"prototypes.prototypes\1."),  # mm, several heads
    (r"head\.(?:loss(?:_module)?\.)?prototypes\.", "prototypes."),  # mmselfsup, mmpretrain
    (r"prototypes\.(?:weight_v|parametrizations\.weight\.original1)$", "prototypes.weight"),  # solo-learn
    (r"prototypes\.", "prototypes."),
)

# Tensors of a backbone's file that a backbone for features does not have.
CLASSIFIERS = r"(?:fc|heads?|head_dist|classifier|classification_head|linear|dist_head)\.|(?:cls|dino|ibot)_head\."
UNUSED = (
    r"mask_token$|decoder|pooler\.|rope_embed\.|local_cls_norm|.*\.(?:bias_mask|relative_position_index|attn_mask)$"
)
UNUSED += r"|norms\.\d\."  # of DINOv3's ConvNeXt, whose last is `norm` again
UNUSED += r"|projection_head\.|prototypes\.|projector\.|predictor\.|pred\.|neck\.|queue"


@dataclass(frozen=True)
class Names:
    """What a library calls the tensors of a backbone. mark: a name that only this table has."""

    library: str
    mark: str
    rules: Rules


RESNET_CHILDREN: Rules = (  # nn.Sequential of torchvision's children
    (r"0\.", "conv1."),
    (r"1\.", "bn1."),
    *((rf"{child}\.", f"layer{child - 3}.") for child in (4, 5, 6, 7)),
)

HF_RESNET: Rules = (
    (r"embedder\.embedder\.convolution\.", "conv1."),
    (r"embedder\.embedder\.normalization\.", "bn1."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.convolution\.", r"layer<1+1>.\2.conv<3+1>."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.normalization\.", r"layer<1+1>.\2.bn<3+1>."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.convolution\.", r"layer<1+1>.\2.downsample.0."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.normalization\.", r"layer<1+1>.\2.downsample.1."),
)

_HF_LAYER = r"(?:model\.|encoder\.)?layers?\.(\d+)\."
HF_VIT: Rules = (  # ViT, ViT-MAE, DINOv2 with and without registers, DINOv3
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.register_tokens$", "reg_token"),
    (r"embeddings\.mask_token$", "mask_token"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (_HF_LAYER + r"attention\.(?:attention\.)?(?:query|q_proj)\.", r"blocks.\1.attn.q."),
    (_HF_LAYER + r"attention\.(?:attention\.)?(?:key|k_proj)\.", r"blocks.\1.attn.k."),
    (_HF_LAYER + r"attention\.(?:attention\.)?(?:value|v_proj)\.", r"blocks.\1.attn.v."),
    (_HF_LAYER + r"attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (_HF_LAYER + r"(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (_HF_LAYER + r"(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (_HF_LAYER + r"(?:intermediate\.dense|mlp\.fc1|mlp\.up_proj)\.", r"blocks.\1.mlp.fc1."),
    (_HF_LAYER + r"(?:output\.dense|mlp\.fc2|mlp\.down_proj)\.", r"blocks.\1.mlp.fc2."),
    (_HF_LAYER + r"layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"(?:layernorm|norm)\.", "norm."),
)

HF_CONVNEXT: Rules = (
    (r"embeddings\.patch_embeddings\.", "stem.0."),
    (r"embeddings\.layernorm\.", "stem.1."),
    (r"encoder\.stages\.(\d)\.downsampling_layer\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layernorm\.", r"stages.\1.blocks.\2.norm."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.pwconv([12])\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer_scale_parameter$", r"stages.\1.blocks.\2.gamma"),
    (r"layernorm\.", "head.norm."),
)

CONVNEXT: Rules = (  # the published files
    (r"downsample_layers\.0\.", "stem."),
    (r"downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"stages\.(\d)\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"stages\.(\d)\.(\d+)\.norm\.", r"stages.\1.blocks.\2.norm."),
    (r"stages\.(\d)\.(\d+)\.pwconv([12])\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"stages\.(\d)\.(\d+)\.gamma$", r"stages.\1.blocks.\2.gamma"),
    (r"norm\.", "head.norm."),
)

TORCHVISION_VIT: Rules = (
    (r"class_token$", "cls_token"),
    (r"encoder\.pos_embedding$", "pos_embed"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.ln\.", "norm."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
)

MM_VIT: Rules = (  # mmpretrain, mmselfsup
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"layers\.(\d+)\.attn\.(qkv|proj)\.", r"blocks.\1.attn.\2."),
    (r"layers\.(\d+)\.attn\.gamma1\.weight$", r"blocks.\1.ls1.gamma"),
    (r"layers\.(\d+)\.ffn\.gamma2\.weight$", r"blocks.\1.ls2.gamma"),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"ln1\.", "norm."),
)

DINOV2: Rules = (  # also DINOv3; `blocks.CHUNK.BLOCK.` is its layout for FSDP
    (r"blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"(?:register|storage)_tokens$", "reg_token"),
    (r"blocks\.(\d+)\.mlp\.w12\.", r"blocks.\1.mlp.fc1."),
    (r"blocks\.(\d+)\.mlp\.w3\.", r"blocks.\1.mlp.fc2."),
)

NAMES = (
    Names("torchvision's and timm's names", "", ()),
    Names("a Sequential of torchvision's children", r"4\.0\.conv1\.weight$", RESNET_CHILDREN),
    Names("Hugging Face's ResNet", r"embedder\.embedder\.convolution\.weight$", HF_RESNET),
    Names("Hugging Face's ViT", r"embeddings\.(?:cls_token|position_embeddings)$", HF_VIT),
    Names("Hugging Face's ConvNeXt", r"encoder\.stages\.0\.layers\.0\.dwconv\.weight$", HF_CONVNEXT),
    Names("the published ConvNeXt", r"downsample_layers\.0\.0\.weight$", CONVNEXT),
    Names("torchvision's ViT", r"conv_proj\.weight$", TORCHVISION_VIT),
    Names("mmpretrain's ViT", r"patch_embed\.projection\.weight$", MM_VIT),
    Names("DINOv2 and DINOv3", r"(?:mask_token|register_tokens|storage_tokens|blocks\.0\.0\.norm1\.weight)$", DINOV2),
)
