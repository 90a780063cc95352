"""Networks of the paper's supplement, Tables S2 to S13, as data.

S2, S4 and S8 are typed row by row; every other net is derived from another in one line. A comment settles each slip of
the supplement, and tests/paper_tables holds the printed tables. No net here has an activation on its scores;
`.final_activation("relu")`, or "avr" for the AVR nets, adds the printed one.
"""

from crelu_models.spec import Conv, Drop, Linear, Net, Pool

# fmt: off
# CIFAR, Springenberg et al. 2015 without whitening. The printed "10x10" before pool3 holds only where pooling rounds
# up (32, 16, 8) and the 1x1 conv7 has the printed padding (8 to 10). The supplement prints ReLU behind conv8.
S2 = Net("S2", (
    Conv("conv1",   96, 3, 1, 1),
    Conv("conv2",   96, 3, 1, 1),
    Pool("pool1", "max", 3, 2, 0, ceil=True),
    Conv("conv3",  192, 3, 1, 1),
    Conv("conv4",  192, 3, 1, 1),
    Conv("conv5",  192, 3, 1, 1),
    Pool("pool2", "max", 3, 2, 0, ceil=True),
    Conv("conv6",  192, 3, 1, 1),
    Conv("conv7",  192, 1, 1, 1),
    Conv("conv8", None, 1, 1, 0, act="none"),
    Pool("pool3", "avg", 0),
), 32)

# The paper's printed counts, 1.4M x {1, 4, 2, 1/2}, are those of Springenberg's ConvPool-CNN-C, three convs in front
# of each pool; Table S2 has two in front of the first, and the text agrees with the table. Here for comparison.
CONVPOOL_CNN_C = Net("ConvPool-CNN-C", (
    Conv("conv1",   96, 3, 1, 1),
    Conv("conv2",   96, 3, 1, 1),
    Conv("conv3",   96, 3, 1, 1),
    Pool("pool1", "max", 3, 2, 0, ceil=True),
    Conv("conv4",  192, 3, 1, 1),
    Conv("conv5",  192, 3, 1, 1),
    Conv("conv6",  192, 3, 1, 1),
    Pool("pool2", "max", 3, 2, 0, ceil=True),
    Conv("conv7",  192, 3, 1, 1),
    Conv("conv8",  192, 1, 1, 1),
    Conv("conv9", None, 1, 1, 0, act="none"),
    Pool("pool3", "avg", 0),
), 32)

# CIFAR, VGG with batch norm and dropout (Zagoruyko, cifar.torch).
S4 = Net("S4", (
    Conv("conv1",   64, 3, 1, 1, bn=True), Drop("conv1", 0.3),
    Conv("conv2",   64, 3, 1, 1, bn=True),
    Pool("pool1", "max", 2, 2),
    Conv("conv3",  128, 3, 1, 1, bn=True), Drop("conv3", 0.4),
    Conv("conv4",  128, 3, 1, 1, bn=True),
    Pool("pool2", "max", 2, 2),
    Conv("conv5",  256, 3, 1, 1, bn=True), Drop("conv5", 0.4),
    Conv("conv6",  256, 3, 1, 1, bn=True), Drop("conv6", 0.4),
    Conv("conv7",  256, 3, 1, 1, bn=True),
    Pool("pool3", "max", 2, 2),
    Conv("conv8",  512, 3, 1, 1, bn=True), Drop("conv8", 0.4),
    Conv("conv9",  512, 3, 1, 1, bn=True), Drop("conv9", 0.4),
    Conv("conv10", 512, 3, 1, 1, bn=True),
    Pool("pool4", "max", 2, 2),
    Conv("conv11", 512, 3, 1, 1, bn=True), Drop("conv11", 0.4),
    Conv("conv12", 512, 3, 1, 1, bn=True), Drop("conv12", 0.4),
    Conv("conv13", 512, 3, 1, 1, bn=True),
    Pool("pool5", "max", 2, 2), Drop("pool5", 0.5),
    Linear("fc14", 512, bn=True), Drop("fc14", 0.5),
    Linear("fc15", None, act="none"),
), 32)

# ImageNet, All-CNN-B. The printed 6x6 pool holds at 224, not at 227. The supplement prints ReLU behind conv12.
S8 = Net("S8", (
    Conv("conv1",    96, 11, 4, 0),
    Conv("conv2",    96,  1, 1, 0),
    Conv("conv3",    96,  3, 2, 0),
    Conv("conv4",   256,  5, 1, 2),
    Conv("conv5",   256,  1, 1, 0),
    Conv("conv6",   256,  3, 2, 0),
    Conv("conv7",   384,  3, 1, 1),
    Conv("conv8",   384,  1, 1, 0),
    Conv("conv9",   384,  3, 2, 1),
    Conv("conv10", 1024,  3, 1, 1),
    Conv("conv11", 1024,  1, 1, 0),
    Conv("conv12", None,  1, 1, 0, act="none"),
    Pool("pool", "avg", 0),
), 224)
# fmt: on

S2_AVR = S2.avr(*range(1, 8))
S3_DOUBLE = S2.width(2)
S3_CRELU = S2.crelu(*range(1, 8))
S3_HALF = S2.crelu(*range(1, 8), width=0.5)
S3_HALF_LITERAL = S3_HALF.width(0.5, 3)  # conv3 prints 48 filters where half of 192 is 96

# S5 to S7 print CReLU, not BN+CReLU, on the changed rows; the text only replaces ReLU, so batch norm stays.
S5 = S4.crelu(1, width=0.5).dropout(0.1, 1)
S6 = S4.crelu(1, 3, width=0.5).dropout(0.1, 1).dropout(0.2, 3)
S7 = S4.crelu(1, 3, 5, width=0.5).dropout(0.1, 1).dropout(0.2, 3).dropout(0.2, 5).dropout(0.2, 6)

S9 = S8.crelu(*range(1, 5))
S10 = S8.crelu(*range(1, 8)).dropout(0.25, 9)
S11 = S8.crelu(*range(1, 10)).dropout(0.25, 9)
# S12 prints CReLU behind all twelve, and 512 inputs where 1024 arrive. CReLU up to conv10 alone counts the 4.7M of
# Table 5 and, cut off, the 4.6M of the text.
S12 = S8.crelu(*range(1, 11), width=0.5).width(0.5, 11).dropout(0.25, 9)
S13 = S8.crelu(1, 4, 7, width=0.5).dropout(0.25, 9)

# Nets by table, as Tables 1, 2, 4 and 5 name them; nets without a table in the supplement come last.
PAPER = {
    "S2": S2,
    "S2_avr": S2_AVR,
    "S3_double": S3_DOUBLE,
    "S3_crelu": S3_CRELU,
    "S3_half": S3_HALF,
    "S4": S4,
    "S5": S5,
    "S6": S6,
    "S7": S7,
    "S8": S8,
    "S9": S9,
    "S10": S10,
    "S11": S11,
    "S12": S12,
    "S13": S13,
    "S8_avr_1_4": S8.avr(*range(1, 5)),
    "S8_avr_1_7": S8.avr(*range(1, 8)).dropout(0.25, 9),
    "S8_avr_1_9": S8.avr(*range(1, 10)).dropout(0.25, 9),
    "S3_half_literal": S3_HALF_LITERAL,
    "S5_literal": S5.without_bn(1),
    "S6_literal": S6.without_bn(1, 3),
    "S7_literal": S7.without_bn(1, 3, 5),
    "convpool_cnn_c": CONVPOOL_CNN_C,
    "convpool_cnn_c_avr": CONVPOOL_CNN_C.avr(*range(1, 9)),
    "convpool_cnn_c_double": CONVPOOL_CNN_C.width(2),
    "convpool_cnn_c_crelu": CONVPOOL_CNN_C.crelu(*range(1, 9)),
    "convpool_cnn_c_half": CONVPOOL_CNN_C.crelu(*range(1, 9), width=0.5),
}
